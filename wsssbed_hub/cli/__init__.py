"""The command line: parse, call, print; each module adds its commands to the app."""
