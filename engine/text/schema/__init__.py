"""JSON schemas as GBNF grammars: documents, what they allow, and the rules that say it."""
