"""Reports: the document of one or several trials, written from their runs."""
