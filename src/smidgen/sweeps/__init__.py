"""Many runs: jobs, who does them, and what they come to."""
