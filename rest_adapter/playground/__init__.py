"""The playground: a web page at `/` that asks the API of its own origin."""
