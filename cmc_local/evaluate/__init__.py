"""Measures what steering changes, through the same runner that chats."""
