"""The routes of the adapter, one module per noun."""
