"""smidgen trains tiny image classifiers under hard budgets and proves the result.

    import smidgen

    run = smidgen.run("mnist-4-strict", seed=1)
    print(run.accuracy, run.goal_met)

The public names do everything that the command line does. `__init__.pyi` lists them; each is loaded when it is first
used, so that `import smidgen` and `smidgen --help` do not wait for PyTorch.
"""

import lazy_loader

__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
