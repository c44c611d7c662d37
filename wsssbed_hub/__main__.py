"""``python -m wsssbed_hub``: the command line."""

from wsssbed_hub.cli.app import main

main()
