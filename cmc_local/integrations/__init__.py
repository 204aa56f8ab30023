"""Adapters inside other people's code, a file for each library; nothing is loaded from here."""
