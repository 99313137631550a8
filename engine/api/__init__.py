"""Requests and responses in the forms of OpenAI's API, without any transport: for batches and for servers."""
