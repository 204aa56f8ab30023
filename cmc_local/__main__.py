"""`python -m cmc_local` is `cmc-local`."""

from cmc_local.commands import main

if __name__ == "__main__":
    main(prog_name="cmc-local")
