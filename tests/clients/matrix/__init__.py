"""The matrix of clients, cases and proxies against the real data plane."""
