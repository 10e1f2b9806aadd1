"""The report: what runs, evaluations, searches and attacks show together, as one HTML page that needs no network."""
