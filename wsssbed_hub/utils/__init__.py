"""Files, errors, text and threads; nothing here knows of maps."""
