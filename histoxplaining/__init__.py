"""Counterfactual explanations for histopathology classifiers. What most people need can be imported from here; it is loaded when it is asked for."""
__version__ = "0.1.0"

import importlib as _importlib, importlib.abc as _abc, importlib.util as _util, os as _os, sys as _sys, warnings as _warnings
_os.environ.setdefault('OMP_WAIT_POLICY', 'passive')   # threads that wait for each other sleep: beside another busy process they would spin, and take ten times as long

_TOP = dict(Explainer='explainer', explain='counterfactual', Counterfactual='counterfactual', summarise='counterfactual', explain_bag='bags', Explorer='explorer',
            TileStore='tiles', Classifier='classifier', train_classifier='classifier', linear_probe='classifier', train='training', TrainConfig='training_step',
            evaluate='evaluation', audit='auditing', write_report='report', write_study='study')
__all__ = ['__version__', *_TOP]

def __getattr__(name):
    if name not in _TOP: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    return getattr(_importlib.import_module(f'.{_TOP[name]}', __name__), name)

def __dir__(): return sorted(__all__)

_MOVED = dict(zenodo='datasets', ops='operators', augment='augmentation', parallel='distributed', watch='monitoring', step='training_step', ways='methods', carry='inversion', audit='auditing')

class _Moved(_abc.MetaPathFinder, _abc.Loader):
    "Modules under the names that they had before 0.2, with a warning; for one release."
    def find_spec(self, name, path=None, target=None):
        package, _, last = name.rpartition('.')
        return _util.spec_from_loader(name, self) if package == __name__ and last in _MOVED else None

    def create_module(self, spec):
        new = f"{__name__}.{_MOVED[spec.name.rpartition('.')[2]]}"
        _warnings.warn(f'{spec.name} is called {new} now', DeprecationWarning, stacklevel=2)
        module = _importlib.import_module(new)
        self.spec = module.__spec__
        return module

    def exec_module(self, module): module.__spec__ = self.spec          # it is the new one

_sys.meta_path.append(_Moved())
