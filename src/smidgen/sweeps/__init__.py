"""Many runs: jobs, the workers that do them, and statistics."""
