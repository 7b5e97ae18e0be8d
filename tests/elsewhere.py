"""A device that is not there: its tensors hold their numbers on the CPU, and may not be mixed with what does not lie on
the device, as on a GPU. It goes by the name of PyTorch's `meta`, whose gradients any machine can work out."""
import contextlib
from unittest import mock
import numpy as np, torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map

aten = torch.ops.aten
# a GPU takes numbers from elsewhere for these
MIXED = (aten.copy_.default, aten._to_copy.default, aten.index.Tensor, aten.index_put_.default,
    aten._index_put_impl_.default)


class There(torch.Tensor):
    "A tensor on the device; `held` are its numbers."
    @staticmethod
    def __new__(cls, held):
        return torch.Tensor._make_wrapper_subclass(cls, held.shape, strides=held.stride(),
            storage_offset=held.storage_offset(), dtype=held.dtype, device='meta')

    def __init__(self, held): self.held = held
    def __repr__(self): return f'There({self.held!r})'
    def tolist(self): return self.held.tolist()
    def numpy(self, *args, **kw): raise TypeError("can't convert a tensor of another device to numpy; use .cpu()")
    __array__ = numpy

    def __getitem__(self, i):
        listed = lambda v: torch.tensor(v) if isinstance(v, (list, range, np.ndarray)) else v
        return super().__getitem__(tuple(map(listed, i)) if isinstance(i, tuple) else listed(i))

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None): return _run(func, args, kwargs or {})


def _run(func, args, kwargs):
    tensors = [v for v in tree_leaves((args, kwargs)) if isinstance(v, torch.Tensor)]
    there, kwargs = any(isinstance(v, There) for v in tensors), dict(kwargs)
    here = [list(v.shape) for v in tensors if not isinstance(v, There) and v.ndim]
    if there and here and (func not in MIXED or func is aten.index.Tensor and not isinstance(args[0], There)):
        raise RuntimeError(f'{func}: a tensor of shape {here[0]} is on the CPU, others are not')
    to = isinstance(args[0], There) if func in (aten.copy_.default, aten.index.Tensor) else there
    if kwargs.get('device') is not None:
        to, kwargs['device'] = torch.device(kwargs['device']).type == 'meta', torch.device('cpu')
    held = lambda v: v.held if isinstance(v, There) else v
    out = func(*tree_map(held, args), **tree_map(held, kwargs))
    def wrapped(o):
        if not (to and isinstance(o, torch.Tensor)): return o
        same = [v for v in tensors if isinstance(v, There) and v.held is o]      # changed in place
        return same[0] if func._schema.is_mutable and same else There(o)
    return tree_map(wrapped, out)


class _Mode(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None): return _run(func, args, kwargs or {})


def _made(f):
    "`torch.tensor`, and its like, for the device: made on the CPU and taken there."
    def g(data, *args, device=None, **kw):
        if device is None or torch.device(device).type != 'meta': return f(data, *args, device=device, **kw)
        return data if isinstance(data, There) and not kw else f(data, *args, **kw).to('meta')
    return g


@contextlib.contextmanager
def elsewhere():
    "Within, there is the device, and its name is `meta`."
    overwritten = torch.__future__.get_overwrite_module_params_on_conversion()
    torch.__future__.set_overwrite_module_params_on_conversion(True)
    try:
        with mock.patch('torch.tensor', _made(torch.tensor)), mock.patch('torch.as_tensor', _made(torch.as_tensor)), \
                _Mode(): yield 'meta'
    finally: torch.__future__.set_overwrite_module_params_on_conversion(overwritten)
