"""The local content-addressed store: fetch, link, scan, prune, verify."""
