"""Everything that strangers can write, fed with anything: see __main__.py for the command."""
