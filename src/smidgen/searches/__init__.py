"""Finding better trials under a budget, on the validation split alone."""
