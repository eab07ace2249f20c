"""The sync client: all but `_transport.py` is made of the async one by generate.py."""
