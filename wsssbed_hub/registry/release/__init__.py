"""The public WSSS-BED release: zips at URLs, checked, pinned and converted when first pulled."""
