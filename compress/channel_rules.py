"""Rules of propagation: what each operation of a forward pass does to the labels of channels.

A rule may unite labels, since values that meet belong together, make new ones, as a layer does, or hand them on. What
has no rule is not followed: the channels that reach it have to stay.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.weak import WeakTensorKeyDictionary

from compress.channel_labels import Labels, extents_of, split_sizes, varies

_LARGEST_PARAMETER = 1 << 20  # of one that is no weight of a layer, in values
_WEIGHTED = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d, nn.Linear)


class ChannelTracer(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Within the block every operation of a network is done to labels too; what it found is in its attributes.

    Attributes:
        labels: of all channels, and of the values of parameters and buffers that channels meet outside of layers.
        tensors: parameters and buffers, by their names in the state_dict.
        made: labels (outputs,) of the channels that a layer makes, by the name of its weight.
        read: dimension and labels (inputs,) of the channels that it reads.
        passed: labels (first dimension,) of the weights of depthwise convolutions, which make no channels.
        own: labels of every value of all other parameters and buffers that channels meet.
        order: the names of all these, as they were reached.
        fixed: why a channel has to stay, by a label of it.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._names: dict[tuple[int, int], list[str]] = {}
        self.tensors: dict[str, Tensor] = {}
        for name, tensor in network.state_dict(keep_vars=True).items():
            if tensor.numel():
                self._names.setdefault((tensor.data_ptr(), tensor.numel()), []).append(name)
                self.tensors[name] = tensor.detach()
        self._layers = {name: module for name, module in network.named_modules() if isinstance(module, _WEIGHTED)}
        self.labels = Labels()
        self._of: Any = WeakTensorKeyDictionary()
        self.own: dict[str, Tensor] = {}
        self.made: dict[str, Tensor] = {}
        self.passed: dict[str, Tensor] = {}
        self.read: dict[str, tuple[int, Tensor]] = {}
        self.order: dict[str, None] = {}
        self.fixed: dict[int, str] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        output = func(*args, **kwargs)
        self._follow(func, args, kwargs, output)
        return output

    # Labels of tensors

    def _parameter(self, tensor: Tensor) -> str | None:
        names = self._names.get((tensor.data_ptr(), tensor.numel()))
        return names[0] if names else None

    def aliases(self, name: str) -> list[str]:
        """All names of the tensor that has this one."""
        tensor = self.tensors[name]
        return self._names[(tensor.data_ptr(), tensor.numel())]

    def _label(self, tensor: Tensor) -> Tensor | None:
        """Of every value of a tensor; None where none comes from a channel."""
        found = self._of.get(tensor)
        if callable(found):
            found = self._of[tensor] = found()
        if found is None and (name := self._parameter(tensor)) is not None and tensor.is_floating_point():
            whole = self.tensors[name]
            if tensor.shape != whole.shape or whole.numel() > _LARGEST_PARAMETER:
                return None
            if name not in self.own:
                self.own[name] = self.labels.new(whole.numel()).reshape(whole.shape)
                self.order[name] = None
            found = self.own[name]
        return found  # type: ignore[no-any-return]

    def resolved(self, tensor: Tensor) -> Tensor | None:
        """The same, each replaced by the least of those that are one with it."""
        labels = self._label(tensor)
        return None if labels is None else self.labels.resolve(labels)

    def _set(self, tensor: Any, labels: Tensor | None) -> None:
        if isinstance(tensor, Tensor):
            if labels is None:
                self._of.pop(tensor, None)
            else:
                self._of[tensor] = labels

    def fix(self, labels: Tensor | None, why: str) -> None:
        """These channels have to stay."""
        if labels is not None:
            for label in torch.unique(self.labels.resolve(labels)).int().tolist():
                if label:
                    self.fixed.setdefault(label, why)

    def _unite(self, one: Tensor, other: Tensor) -> None:
        """Labels at the same place are one; a label without a partner has to stay."""
        pairs = torch.unique(torch.stack((one.flatten(), other.flatten()), 1), dim=0)
        both = (pairs > 0).all(1)
        self.fix(pairs[~both], "what they are added to has other channels too")
        self.labels.unite(*pairs[both].T)

    def _unite_known(self, one: Tensor, other: Tensor) -> None:
        """Labels at the same place are one, where there are two."""
        both = (one > 0) & (other > 0)
        self.labels.unite(one[both], other[both])

    # Operations

    def _follow(self, func: Any, args: Any, kwargs: Any, output: Any) -> None:
        tensors = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        name = str(func.overloadpacket).partition(".")[2]
        plain = name.rstrip("_") if name.endswith("_") and not name.startswith("_") else name
        if plain in _NEW or not tensors:
            return
        if plain in _WEIGHED:
            _WEIGHED[plain](self, args, kwargs, output)
        elif not any(self._of.get(each) is not None for each in tensors) and (
            plain in _MOVING or not any(self._parameter(each) for each in tensors)
        ):
            self._follow_constant(func, plain, args, kwargs, tensors, output)
        elif plain in _SPECIAL:
            _SPECIAL[plain](self, args, kwargs, output)
        elif plain in _MOVING:
            self._move(func, plain, args, kwargs, output)
        elif torch.Tag.pointwise in func.tags or plain in _POINTWISE:
            self._set(output, self._combine(tensors, output.shape))
        else:
            self._stop(plain, tensors)

    def _follow_constant(
        self, func: Any, name: str, args: Any, kwargs: Any, tensors: Sequence[Tensor], output: Any
    ) -> None:
        """Parameters and buffers keep their labels while they are moved; they are made when somebody asks."""
        if name in _MOVING and len(tensors) == 1 and self._parameter(tensors[0]) and isinstance(output, Tensor):
            if self._of.get(output) is None and self._parameter(output) == self._parameter(tensors[0]):
                parameter = self._parameter(tensors[0])
                assert parameter is not None
                if output.shape == self.tensors[parameter].shape:
                    return
            self._of[output] = lambda: self._moved(func, name, args, kwargs)

    def _moved(self, func: Any, name: str, args: Any, kwargs: Any) -> Any:
        def labels_of(value: Any) -> Any:
            if not isinstance(value, Tensor) or not value.is_floating_point():
                return value
            labels = self._label(value)
            return torch.zeros(()).expand(value.shape) if labels is None else self.labels.resolve(labels)

        if name in _ALIASES:
            return self._label(args[0])
        if name in _VIEWS:
            return labels_of(args[0]).reshape(args[1])  # labels may lie in memory otherwise than values
        if name == "constant_pad_nd":
            args = args[:2]
        return func(*tree_map(labels_of, args), **tree_map(labels_of, kwargs))

    def _move(self, func: Any, name: str, args: Any, kwargs: Any, output: Any) -> None:
        if name in _VIEWS:
            self._split(self.resolved(args[0]), args[0].shape, output.shape)
        moved = self._moved(func, name, args, kwargs)
        if isinstance(output, Tensor):
            self._set(output, moved)
        else:
            for tensor, labels in zip(output, moved, strict=True):
                self._set(tensor, labels)

    def _split(self, labels: Tensor | None, before: Sequence[int], after: Sequence[int]) -> None:
        """A view that makes several dimensions of that of channels: all but the largest are of a fixed size."""
        if labels is None or prod(before) != prod(after) or 0 in before:
            return
        for dimension, factors in split_sizes(before, after):
            if len(factors) > 1 and varies(labels, dimension):
                shaped = labels.movedim(dimension, 0).reshape(*factors, -1)
                varying = [place for place in range(len(factors)) if varies(shaped, place)]
                largest = max(varying, key=lambda place: factors[place])
                if len(varying) > 1:
                    rows = shaped.movedim(largest, 0).reshape(factors[largest], -1, shaped.shape[-1])
                    self._unite_all(rows.transpose(0, 1))

    def _unite_all(self, rows: Tensor) -> None:
        """(rows, ...): labels at the same place of all rows are one."""
        if len(rows) > 1:
            self._unite(rows[:1].expand_as(rows[1:]), rows[1:])

    def _stop(self, name: str, tensors: Iterable[Tensor]) -> None:
        for tensor in tensors:
            self.fix(self._of_known(tensor), f"its channels go through {name.strip('_')}, which is not followed")

    def _of_known(self, tensor: Tensor) -> Tensor | None:
        return self._label(tensor) if self._of.get(tensor) is not None else None

    def _combine(self, tensors: Sequence[Tensor], shape: torch.Size) -> Tensor | None:
        """Values that meet, as in an addition or a product."""
        labels: Tensor | None = None
        extents = (False,) * len(shape)
        for tensor in tensors:
            if tensor.ndim > len(shape) or (tensor.ndim == 0 and self._label(tensor) is None):
                continue
            own, own_extents = self._label(tensor), extents_of(tensor, shape)
            labels = self._meet(labels, extents, own, own_extents, shape)
            extents = tuple(a or b for a, b in zip(extents, own_extents, strict=True))
        return labels

    def _meet(
        self,
        one: Tensor | None,
        one_extents: Sequence[bool],
        other: Tensor | None,
        other_extents: Sequence[bool],
        shape: torch.Size,
    ) -> Tensor | None:
        if one is None and other is None:
            return None
        zero = torch.zeros(())
        a, b = (self.labels.resolve(zero if each is None else each).expand(shape) for each in (one, other))
        a_is_spread = b_is_spread = False
        if one is None or other is None or not torch.equal(a, b):
            varying = [d for d in range(len(shape)) if shape[d] > 1 and (varies(a, d) or varies(b, d))]
            a_small, b_small = a, b
            for d in set(range(len(shape))) - set(varying):
                a_small, b_small = a_small.narrow(d, 0, 1), b_small.narrow(d, 0, 1)
            a_varies = [d for d in varying if varies(a_small, d)]
            b_varies = [d for d in varying if varies(b_small, d)]
            a_is_spread = any(not one_extents[d] for d in b_varies)
            b_is_spread = any(not other_extents[d] for d in a_varies)
            pairs = torch.unique(torch.stack((a_small.flatten(), b_small.flatten()), 1), dim=0)
            self._unite_pairs(
                pairs,
                a_is_wide=any(one_extents[d] for d in b_varies),
                b_is_wide=any(other_extents[d] for d in a_varies),
                a_is_spread=a_is_spread,
                b_is_spread=b_is_spread,
            )
        # What is read by several channels belongs to none of them.
        return torch.where(a > 0, a, b) if not a_is_spread or b_is_spread else torch.where(b > 0, b, a)

    def _unite_pairs(
        self, pairs: Tensor, *, a_is_wide: bool, b_is_wide: bool, a_is_spread: bool, b_is_spread: bool
    ) -> None:
        """Pairs (pairs, 2) of labels that meet.

        Args:
            a_is_wide: it has values of its own for the channels of the other; where they have no label, these stay.
            a_is_spread: one value of it meets several channels of the other: it is read by all of them, not one of
                them, and has to stay.
        """
        a, b = pairs[:, 0], pairs[:, 1]
        why = "it meets a constant with as many channels"
        if a_is_wide:
            self.fix(b[a == 0], why)
        if b_is_wide:
            self.fix(a[b == 0], why)
        kept = (a > 0) & (b > 0) & (a != b)
        for own, is_spread in ((a, a_is_spread), (b, b_is_spread)):
            if is_spread:
                met, counts = torch.unique(own[own > 0], return_counts=True)  # each pair is there once
                several = met[counts > 1]
                self.fix(several, "it scales or moves several channels")
                kept &= ~torch.isin(own, several)
        self.labels.unite(*pairs[kept].T)

    def _by_channel(self, tensor: Tensor, dimension: int = 1) -> Tensor | None:
        """(channels,) of a tensor whose places along the other dimensions are one for the layer that reads it."""
        labels = self.resolved(tensor)
        if labels is None:
            return None
        rows = labels.movedim(dimension, 0).reshape(labels.shape[dimension], -1)
        if not bool((rows == rows[:, :1]).all()):
            self._unite_all(torch.unique(rows.T, dim=0))
            rows = self.labels.resolve(rows)
        return rows[:, 0]

    def _spatial(self, args: Any, kwargs: Any, output: Any) -> None:
        """Pooling, resizing, padding: each channel alone."""
        del kwargs
        self._stop("a grid of places", [each for each in args[1:] if isinstance(each, Tensor)])
        channels = self._by_channel(args[0])
        for each in output if isinstance(output, tuple | list) else (output,):
            if channels is not None and each.ndim == args[0].ndim and each.shape[1] == len(channels):
                self._set(each, channels.reshape(1, -1, *(1,) * (each.ndim - 2)).expand(each.shape))
            else:
                self._stop("a pooling of another shape", [args[0]])

    def _reduce(self, args: Any, kwargs: Any, output: Any) -> None:
        """A mean or another figure over some dimensions, which may not be those of channels."""
        labels = self.resolved(args[0])
        if labels is None:
            return
        lists = [each for each in args[1:] if isinstance(each, list | tuple) and each]
        numbers = [[each] for each in args[1:] if type(each) is int]
        given = [kwargs["dim"]] if "dim" in kwargs else [*lists, *numbers, list(range(labels.ndim))]
        dimensions = sorted({each % labels.ndim for each in given[0]})
        if any(varies(labels, each) for each in dimensions):
            self.fix(labels, "a figure over all of its channels is computed")
            return
        for each in dimensions:
            labels = labels.narrow(each, 0, 1)
        outputs = output if isinstance(output, tuple | list) else (output,)
        for each in outputs:
            same = each.ndim == labels.ndim
            kept = [size for d, size in enumerate(labels.shape) if d not in dimensions]
            self._set(each, labels.expand(each.shape) if same else labels.reshape(kept))

    def _softmax(self, args: Any, kwargs: Any, output: Any) -> None:
        del kwargs
        labels = self.resolved(args[0])
        if labels is not None and varies(labels, args[1]):
            self.fix(labels, "its channels are weighed against each other")
        self._set(output, labels)

    def _glu(self, args: Any, kwargs: Any, output: Any) -> None:
        del kwargs
        labels = self.resolved(args[0])
        if labels is not None:
            one, other = labels.chunk(2, args[1] if len(args) > 1 else -1)
            self._unite(one, other)
            self._set(output, self.labels.resolve(one))

    def _copy(self, args: Any, kwargs: Any, output: Any) -> None:
        del kwargs
        labels = self._label(args[1])
        if args[0]._is_view():
            self._stop("a part of a tensor that is written to", [args[1]])
            if self._of.get(args[0]) is not None:
                self._stop("a part of a tensor that is written to", [args[0]])
        else:
            self._set(output, None if labels is None else labels.expand(output.shape))

    def _pixel_shuffle(self, args: Any, kwargs: Any, output: Any) -> None:
        del kwargs
        channels = self._by_channel(args[0], args[0].ndim - 3)
        if channels is not None:
            rows = channels.reshape(-1, args[1] ** 2).T  # (r * r, C / r / r)
            self._unite_all(rows)
            shape = (1,) * (output.ndim - 3) + (-1, 1, 1)
            self._set(output, self.labels.resolve(rows[0]).reshape(shape).expand(output.shape))

    def _channel_shuffle(self, args: Any, kwargs: Any, output: Any) -> None:
        del kwargs
        channels = self._by_channel(args[0])
        if channels is not None:
            rows = channels.reshape(args[1], -1)
            self._unite_all(rows)
            shuffled = self.labels.resolve(rows).T.flatten()
            self._set(output, shuffled.reshape(1, -1, *(1,) * (output.ndim - 2)).expand(output.shape))

    # Layers

    def _batch_norm(self, args: Any, kwargs: Any, output: Any) -> None:
        del kwargs
        channels = self._by_channel(args[0])
        for each in args[1:5]:
            own = self._label(each) if isinstance(each, Tensor) else None
            if channels is not None and own is not None:
                self._unite_known(channels, own)
        self._set(output[0] if isinstance(output, tuple | list) else output, self._label(args[0]))

    def _group_norm(self, args: Any, kwargs: Any, output: Any) -> None:
        channels, groups = self._by_channel(args[0]), args[6]
        if channels is not None and groups > 1:
            self._unite_all(channels.reshape(groups, -1))
        self._batch_norm((*args[:3], None, None), kwargs, output)

    def _layer_norm(self, args: Any, kwargs: Any, output: Any) -> None:
        del kwargs
        read = [each for each in (args[0], *args[2:4]) if isinstance(each, Tensor)]
        self._set(output[0], self._combine(read, args[0].shape))

    def _convolution(self, args: Any, kwargs: Any, output: Any) -> None:
        del kwargs
        source, weight, bias, transposed, groups = args[0], args[1], args[2], bool(args[6]), int(args[8])
        dimension = 1 if output.ndim > 2 else 0
        inputs = source.shape[dimension]
        name = self._parameter(weight)
        if 1 < groups == inputs and (transposed or name is None or weight.shape[0] % groups == 0):
            channels = self._convolve_depthwise(source, weight, name, groups, output.shape[dimension])
        else:
            read = self._by_channel(source)
            if read is not None and groups > 1:
                self._unite_all(read.reshape(groups, -1))
                read = self.labels.resolve(read)
            per_group = inputs // groups
            # A group's weights have one place for each of its inputs.
            channels = self._weigh(
                name if name and layer_of(name) in self._layers else None,
                None if read is None else read if transposed else read[:per_group],
                0 if transposed else 1,
                output.shape[dimension],
                weight,
            )
            if channels is not None and groups > 1:
                self._unite_all(channels.reshape(groups, -1))
        self._finish(channels, dimension, bias, output)

    def _convolve_depthwise(
        self, source: Tensor, weight: Tensor, name: str | None, groups: int, outputs: int
    ) -> Tensor | None:
        channels = self._by_channel(source)
        if channels is None:
            return None
        wide = channels.repeat_interleave(outputs // groups)
        if name is None:
            self.fix(self._of_known(weight), "it is made into weights")
        elif name in self.passed or name in self.read or name in self.own:
            self.fix(wide, f"{layer_of(name)} is used in two ways")
            if name in self.passed:
                self._unite(self.passed[name], self.labels.resolve(wide if len(weight) != groups else channels))
        else:
            # A transposed one has a row of weights for each input.
            self.passed[name] = channels if len(weight) == groups else wide
            self.order.setdefault(name, None)
        return wide

    def _weigh(
        self, name: str | None, read: Tensor | None, dimension: int, outputs: int, weight: Tensor
    ) -> Tensor | None:
        """The output channels (outputs,) of a layer that reads channels (inputs,), whose weights have this name."""
        if name is None:
            why = "they meet weights that are computed, or are no layer's own"
            self.fix(read, why)
            self.fix(self._of_known(weight), why)
            return None
        self.order.setdefault(name, None)
        read = torch.zeros(weight.shape[dimension]) if read is None else read
        if name in self.passed or name in self.own:
            self.fix(read, f"{layer_of(name)} is used in two ways")
            return None
        if name in self.read:  # a layer that is called again
            known, inputs = self.read[name]
            if known != dimension:  # from its outputs to its inputs, as a transposed one of the same weights
                self._unite(self.made[name], read)
                return self.labels.resolve(inputs)
            self._unite(inputs, read)
        else:
            self.read[name] = dimension, read
            self.made[name] = self.labels.new(outputs)
        return self.labels.resolve(self.made[name])

    def _finish(self, channels: Tensor | None, dimension: int, bias: Tensor | None, output: Tensor) -> None:
        """Label the answer of a layer, and its bias."""
        if channels is None:
            return
        own = None if bias is None else self._label(bias)
        if own is not None:
            self._unite_known(channels, own)
        shape = [1] * output.ndim
        shape[dimension] = -1
        self._set(output, self.labels.resolve(channels).reshape(shape).expand(output.shape))

    def _linear_of(self, weight: Tensor) -> str | None:
        """The name of the linear layer whose transposed weights these are."""
        name = self._parameter(weight)
        whole = self.tensors[name] if name else None
        is_layer = name is not None and isinstance(self._layers.get(layer_of(name)), nn.Linear)
        if whole is None or not is_layer or whole.ndim != 2:
            return None
        return name if weight.shape == whole.shape[::-1] and weight.stride() == whole.stride()[::-1] else None

    def _multiply(self, args: Any, kwargs: Any, output: Any) -> None:
        """(rows, inputs) x (inputs, outputs): a linear layer, or two answers."""
        del kwargs
        bias, source, weight = args[:3] if len(args) >= 3 else (None, *args[:2])
        name = self._linear_of(weight) if weight.ndim == 2 else None
        if name is None:
            self._multiply_answers(source, weight, output)
            if bias is not None:
                self._stop("a product with something added", [bias])
            return
        labels = self.resolved(source)
        if labels is not None and varies(labels, 0):
            # Each row is a channel, and the layer mixes something else than channels.
            rows = self._by_channel(source, 0)
            self.order[name] = None
            self.made.setdefault(name, self.labels.new(output.shape[1]))
            self.fix(self.made[name], "it answers no channels")
            if varies(labels, 1):
                self.fix(labels, "its channels meet its places")
            assert rows is not None
            self._set(output, rows[:, None].expand(output.shape))
            return
        read = self._by_channel(source)
        self._finish(self._weigh(name, read, 1, output.shape[1], weight), 1, bias, output)

    def _multiply_answers(self, one: Tensor, other: Tensor, output: Tensor) -> None:
        """(..., rows, inner) x (..., inner, columns): attention, a Gram matrix."""
        why = "its channels are multiplied with each other"
        a, b = self.resolved(one), self.resolved(other)
        for labels, inner in ((a, -1), (b, -2)):
            if labels is not None and varies(labels, inner):
                self.fix(a, why)
                self.fix(b, why)
                return
        rows = None if a is None or not bool(a.any()) else a[..., :1].expand(output.shape)
        columns = None if b is None or not bool(b.any()) else b[..., :1, :].expand(output.shape)
        if rows is not None and columns is not None:
            self.fix(rows, why)
            self.fix(columns, why)
            return
        self._set(output, rows if columns is None else columns)

    def output_dimension(self, name: str) -> int:
        """Along which the weights of this name make channels."""
        return 1 if self.is_transposed(name) else 0

    def is_transposed(self, name: str) -> bool:
        """Whether the weights of this name are those of a transposed convolution."""
        layer = self._layers.get(layer_of(name))
        return isinstance(layer, nn.ConvTranspose1d | nn.ConvTranspose2d | nn.ConvTranspose3d)


def layer_of(name: str) -> str:
    """The layer that a parameter belongs to, both by name."""
    return name.rpartition(".")[0]


_Rule = Callable[[ChannelTracer, Any, Any, Any], None]

_NEW = {
    *("empty", "empty_like", "empty_strided", "new_empty", "new_zeros", "new_ones", "new_full", "zeros", "ones"),
    *("full", "arange", "linspace", "scalar_tensor", "_local_scalar_dense", "is_same_size", "sym_size", "equal"),
    *("rand", "randn", "lift_fresh"),
}
_ALIASES = {"clone", "detach", "alias", "_to_copy", "contiguous", "lift", "_reshape_alias_copy", "to"}
_VIEWS = {"view", "_unsafe_view", "reshape", "unflatten"}
_MOVING = {
    *_ALIASES,
    *_VIEWS,
    *("permute", "transpose", "t", "expand", "slice", "select", "narrow", "cat", "stack", "split", "chunk", "unbind"),
    *("split_with_sizes", "squeeze", "unsqueeze", "flip", "roll", "index", "index_select", "constant_pad_nd"),
    *("pixel_unshuffle", "im2col", "repeat", "unfold", "repeat_interleave", "diagonal", "movedim", "swapaxes"),
}
_POINTWISE = {
    *("_prelu_kernel", "hardswish", "hardsigmoid", "hardtanh", "zeros_like", "ones_like", "full_like", "rand_like"),
    *("randn_like", "native_dropout", "fill", "zero", "threshold", "celu", "selu", "log_sigmoid_forward", "_conj"),
}
_WEIGHED: Mapping[str, _Rule] = {
    "convolution": ChannelTracer._convolution,
    "_convolution": ChannelTracer._convolution,
    "addmm": ChannelTracer._multiply,
    "mm": ChannelTracer._multiply,
}
_SPECIAL: Mapping[str, _Rule] = {
    **dict.fromkeys(
        (
            *("avg_pool1d", "avg_pool2d", "max_pool2d", "max_pool2d_with_indices", "adaptive_avg_pool2d"),
            *("_adaptive_avg_pool2d", "adaptive_max_pool2d", "upsample_nearest2d", "_upsample_nearest_exact2d"),
            *("upsample_bilinear2d", "upsample_bicubic2d", "_upsample_bilinear2d_aa", "_upsample_bicubic2d_aa"),
            *("reflection_pad2d", "replication_pad2d", "reflection_pad1d", "replication_pad1d", "max_unpool2d"),
            *("grid_sampler_2d", "upsample_linear1d", "upsample_nearest1d", "fractional_max_pool2d"),
        ),
        ChannelTracer._spatial,
    ),
    **dict.fromkeys(
        (
            *("mean", "sum", "amax", "amin", "max", "min", "std", "var", "var_mean", "linalg_vector_norm"),
            *("logsumexp", "prod", "norm", "median", "any", "all", "argmax", "argmin", "count_nonzero"),
        ),
        ChannelTracer._reduce,
    ),
    **dict.fromkeys(("_softmax", "_safe_softmax", "_log_softmax", "cumsum"), ChannelTracer._softmax),
    **dict.fromkeys(
        (
            *("native_batch_norm", "_native_batch_norm_legit", "_native_batch_norm_legit_no_training"),
            *("cudnn_batch_norm", "miopen_batch_norm", "batch_norm_with_update"),
        ),
        ChannelTracer._batch_norm,
    ),
    "native_group_norm": ChannelTracer._group_norm,
    "native_layer_norm": ChannelTracer._layer_norm,
    "pixel_shuffle": ChannelTracer._pixel_shuffle,
    "channel_shuffle": ChannelTracer._channel_shuffle,
    "native_channel_shuffle": ChannelTracer._channel_shuffle,
    "glu": ChannelTracer._glu,
    "copy": ChannelTracer._copy,
    "bmm": lambda tracer, args, _kwargs, output: tracer._multiply_answers(args[0], args[1], output),
}
