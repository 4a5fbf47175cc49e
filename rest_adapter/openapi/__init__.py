"""The description of the REST API as an OpenAPI document, and as a page."""
