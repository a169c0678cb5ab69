"""Write the benchmark model (bench/data/make_gemma.py) as OpenVINO IR: int8 weights, a KV cache in its state.

    python write_openvino.py MODEL_FOLDER OUT_FOLDER

The form that OpenVINO's own tools make of such a model (nncf's int8_sym, past and present as variables, scaled dot
product attention), built from its operations: its ONNX reader does not know the tied, quantised table.
"""

import sys
from functools import partial
from pathlib import Path

import numpy as np
import openvino as ov
from openvino import opset13 as ops
from openvino._offline_transformations import apply_make_stateful_transformation
from safetensors_reader import Weights


class Builder:
    def __init__(self, weights: Weights) -> None:
        self.weights = weights
        self.config = weights.config
        self.parameters: list[ov.op.Parameter] = []
        self.states: dict[str, str] = {}
        self.outputs: list[ov.Output] = []
        self.table = None

    def build(self) -> ov.Model:
        config = self.config
        ids = self.input("input_ids", [1, -1], np.int64)
        positions = self.input("positions", [1, -1], np.int64)
        beams = self.input("beam_idx", [1], np.int32)
        embedded = ops.gather(self.matrix("model.embed_tokens.weight"), ids, 0)
        x = ops.multiply(embedded, f32(config["hidden_size"] ** 0.5))
        self.ropes = {
            kind: self.rope(positions, config[theta])
            for kind, theta in (("full_attention", "rope_theta"), ("sliding_attention", "rope_local_base_freq"))
        }
        self.masks: dict[str, ov.Node] = {}
        for index, kind in enumerate(config["layer_types"]):
            x = self.layer(f"model.layers.{index}.", index, kind, x, positions, beams)
        last = ops.gather(self.norm("model.norm.weight", x), np.array([-1], np.int64), 1)
        logits = ops.matmul(last, self.table, False, True)
        logits.output(0).set_names({"logits"})
        model = ov.Model([ops.result(logits), *self.outputs], self.parameters, "gemma3")
        apply_make_stateful_transformation(model, self.states)
        return model

    def input(self, name: str, shape: list[int], dtype: type) -> ov.Node:
        parameter = ops.parameter(ov.PartialShape(shape), dtype, name)
        parameter.output(0).set_names({name})
        self.parameters.append(parameter)
        return parameter

    def matrix(self, name: str) -> ov.Node:
        """int8 rows with a scale each, as a product that the CPU plugin knows as compressed weights."""
        value = self.weights[name]
        scales = np.maximum(np.abs(value).max(axis=1, keepdims=True), 1e-12) / np.float32(127)
        integers = ops.constant(np.rint(value / scales).astype(np.int8), name=name)
        product = ops.multiply(ops.convert(integers, "f32"), ops.constant(scales.astype(np.float32)))
        if name == "model.embed_tokens.weight":
            self.table = product
        return product

    def linear(self, x: ov.Node, name: str) -> ov.Node:
        return ops.matmul(x, self.matrix(f"{name}_proj.weight"), False, True)

    def norm(self, name: str, x: ov.Node) -> ov.Node:
        mean = ops.reduce_mean(ops.power(x, f32(2)), np.array([-1]), keep_dims=True)
        scale = ops.divide(f32(1), ops.sqrt(ops.add(mean, f32(self.config["rms_norm_eps"]))))
        return ops.multiply(ops.multiply(x, scale), ops.constant(self.weights[name] + np.float32(1)))

    def rope(self, positions: ov.Node, theta: float) -> tuple[ov.Node, ov.Node]:
        size = self.config["head_dim"]
        steps = (theta ** -(np.arange(0, size, 2, dtype=np.float64) / size)).astype(np.float32)
        angles = ops.matmul(
            ops.unsqueeze(ops.convert(positions, "f32"), np.array(2)), ops.constant(steps[None, None]), False, False
        )
        both = ops.unsqueeze(ops.concat([angles, angles], -1), np.array(1))
        return ops.cos(both), ops.sin(both)

    def rotated(self, x: ov.Node, kind: str) -> ov.Node:
        cos, sin = self.ropes[kind]
        first, second = ops.split(x, np.array(-1), 2).outputs()
        turned = ops.concat([ops.multiply(second, f32(-1)), first], -1)
        return ops.add(ops.multiply(x, cos), ops.multiply(turned, sin))

    def mask(self, kind: str, positions: ov.Node, keys: ov.Node) -> ov.Node:
        if kind not in self.masks:
            total = ops.gather(ops.shape_of(keys), np.array(2), 0)
            columns = ops.range(np.array(0, np.int64), total, np.array(1, np.int64), "i64")
            rows = ops.unsqueeze(ops.unsqueeze(positions, np.array(1)), np.array(3))
            seen = ops.less_equal(columns, rows)
            if kind == "sliding_attention":
                window = np.array(self.config["sliding_window"], np.int64)
                seen = ops.logical_and(seen, ops.greater(columns, ops.subtract(rows, window)))
            self.masks[kind] = ops.select(seen, f32(0), f32(np.finfo(np.float32).min))
        return self.masks[kind]

    def layer(self, at: str, index: int, kind: str, x: ov.Node, positions: ov.Node, beams: ov.Node) -> ov.Node:
        config = self.config
        size, heads, kv_heads = config["head_dim"], config["num_attention_heads"], config["num_key_value_heads"]
        inside = self.norm(f"{at}input_layernorm.weight", x)

        def split(part: str, count: int) -> ov.Node:
            whole = self.linear(inside, f"{at}self_attn.{part}")
            return ops.reshape(whole, np.array([0, 0, count, size]), special_zero=True)

        def by_head(value: ov.Node) -> ov.Node:
            return ops.transpose(value, np.array([0, 2, 1, 3]))

        query = self.rotated(by_head(self.norm(f"{at}self_attn.q_norm.weight", split("q", heads))), kind)
        key = self.rotated(by_head(self.norm(f"{at}self_attn.k_norm.weight", split("k", kv_heads))), kind)
        value = by_head(split("v", kv_heads))
        key, value = (self.cached(f"{index}.{name}", new, beams) for name, new in (("key", key), ("value", value)))
        mask = self.mask(kind, positions, key)
        wide = partial(self.repeated, count=heads // kv_heads)
        scale = f32(config["query_pre_attn_scalar"] ** -0.5)
        attended = ops.scaled_dot_product_attention(query, wide(key), wide(value), mask, scale)
        flat = ops.reshape(by_head(attended), np.array([0, 0, heads * size]), special_zero=True)
        after = self.norm(f"{at}post_attention_layernorm.weight", self.linear(flat, f"{at}self_attn.o"))
        x = ops.add(x, after)
        inside = self.norm(f"{at}pre_feedforward_layernorm.weight", x)
        gate = ops.gelu(self.linear(inside, f"{at}mlp.gate"), "tanh")
        fed = self.linear(ops.multiply(gate, self.linear(inside, f"{at}mlp.up")), f"{at}mlp.down")
        return ops.add(x, self.norm(f"{at}post_feedforward_layernorm.weight", fed))

    def cached(self, name: str, new: ov.Node, beams: ov.Node) -> ov.Node:
        config = self.config
        shape = [1, config["num_key_value_heads"], -1, config["head_dim"]]
        past = self.input(f"past.{name}", shape, np.float32)
        joined = ops.concat([ops.gather(past, beams, 0), new], 2)
        joined.output(0).set_names({f"present.{name}"})
        self.outputs.append(ops.result(joined))
        self.states[f"past.{name}"] = f"present.{name}"
        return joined

    @staticmethod
    def repeated(x: ov.Node, count: int) -> ov.Node:
        """Each key and value head for `count` query heads, in the pattern that the plugin undoes."""
        if count == 1:
            return x
        shape = ops.shape_of(x)
        parts = [ops.gather(shape, np.array([axis]), 0) for axis in range(4)]
        wide = ops.concat([parts[0], parts[1], ops.constant(np.array([count])), parts[2], parts[3]], 0)
        spread = ops.broadcast(ops.unsqueeze(x, np.array(2)), wide, "BIDIRECTIONAL")
        heads = ops.multiply(parts[1], ops.constant(np.array([count])))
        return ops.reshape(spread, ops.concat([parts[0], heads, parts[2], parts[3]], 0), special_zero=False)


def f32(value: float) -> ov.Node:
    return ops.constant(np.array(value, np.float32))


if __name__ == "__main__":
    out = Path(sys.argv[2])
    out.mkdir(parents=True, exist_ok=True)
    ov.save_model(Builder(Weights(Path(sys.argv[1]))).build(), out / "model.xml", compress_to_fp16=False)
