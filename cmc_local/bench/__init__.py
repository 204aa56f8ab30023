"""The benchmark: how fast, beside what, and where a step's time goes.

    passages.py -> ours.py, stock.py -> paired.py -> report.py
    texts as       ways to write        rounds,      table, breakdown,
    tokens         them: arms.py,       ratios       one line of JSON
                   apart.py

`session.py` puts it together for `cmc-local bench`.
"""
