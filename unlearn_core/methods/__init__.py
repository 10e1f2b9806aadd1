"""One file a method, each defining `METHOD`. A new file here appears in every command by itself."""
