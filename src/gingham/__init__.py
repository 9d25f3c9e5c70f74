"""Gingham trains image classifiers on small images, in seconds on a laptop, and reports how accurate they really are.

import gingham

data = gingham.load_data("fashion-mnist", validation=0)
run = gingham.fit(gingham.RECIPES["article"], data.train)
print(gingham.evaluate(run, data.test))
gingham.save(run, "runs/article")
model = gingham.load("runs/article").model
"""

import lazy_loader

# __init__.pyi lists the public names. Each is imported on first use, so `import gingham` alone takes no time.
__getattr__, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)
