"""Many runs: experiments, their comparison, speed on this machine and on a GPU."""
