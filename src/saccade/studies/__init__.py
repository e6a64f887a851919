"""Claims about vision models as experiments: each one small file, run under equal conditions, judged by intervals."""
