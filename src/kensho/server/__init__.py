"""Server: what Kensho answers over HTTP. Today the static origin; the API and the live page come here."""
