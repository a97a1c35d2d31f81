"""Questions answered by searching passages through a local BM25 index."""
