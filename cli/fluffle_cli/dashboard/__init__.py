"""The live page of a federation: its server, and the files that a report shows too."""
