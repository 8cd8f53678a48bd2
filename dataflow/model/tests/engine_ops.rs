//! Every fused operation of the default engine against dfdx's stock operations on the same values, and against finite
//! differences.

use std::sync::Arc;

use dfdx::prelude::*;
use mlomae_model::engine::dfdx_cpu::{CpuTensor, DfdxCpu};
use mlomae_model::engine::{AttentionShape, Engine, HostIo, Tape, TokenOrder, TokenWeights};
use mlomae_model::init::{normals, tensor_rng};
use mlomae_model::layout::{Layout, LinearWeights, NormWeights};
use mlomae_model::level::Level;
use mlomae_model::masking::order::order_by_keys;
use mlomae_model::parallel::arena::{Arena, Buffer, Params};

type Plain<S> = Tensor<S, f32, Cpu>;
type Taped<S> = Tensor<S, f32, Cpu, OwnedTape<f32, Cpu>>;
type Matrix = Taped<(usize, usize)>;
type Stock<'a> = &'a dyn Fn(&Cpu, Vec<Matrix>, Vec<Plain<(usize, usize)>>) -> Matrix;

fn draw(name: &str, len: usize) -> Vec<f32> {
    let mut values = vec![0.0; len];
    normals(&mut values, 1.0, &mut tensor_rng(5, name));
    values
}

fn params(layout: &Layout) -> Params {
    Arc::new(Buffer::from_vec(draw("params", layout.len)))
}

fn assert_close(what: &str, ours: &[f32], other: &[f32], tolerance: f64) {
    assert_eq!(ours.len(), other.len(), "{what}");
    let norm = |v: &mut dyn Iterator<Item = f64>| v.map(|x| x * x).sum::<f64>().sqrt();
    let difference = norm(&mut ours.iter().zip(other).map(|(a, b)| f64::from(*a) - f64::from(*b)));
    let size = norm(&mut other.iter().map(|&b| f64::from(b)));
    assert!(difference <= tolerance * size.max(1e-6), "{what}: {difference:e} of {size:e}\n{ours:?}\n{other:?}");
}

/// An operation of the engine on inputs of given shapes, and the same made of dfdx's stock operations.
struct Case<'a> {
    name: &'a str,
    layout: Layout,
    inputs: Vec<(usize, usize)>,
    /// Whether the operation takes its inputs as constants.
    is_constant: bool,
    fused: &'a dyn Fn(&mut DfdxCpu, &[CpuTensor]) -> CpuTensor,
    /// Takes the inputs and the tensor of each layout entry as `[rows, columns]` (vectors as one row); returns the
    /// output.
    stock: Stock<'a>,
}

/// The inputs as weights of another level, since the engine has gradients of weights alone: an input x `[rows,
/// columns]` is I·Wᵀ with W = xᵀ, and its gradient is that of W, transposed.
struct Inputs {
    layout: Layout,
    layers: Vec<LinearWeights>,
}

impl Inputs {
    fn of(shapes: &[(usize, usize)]) -> Self {
        let mut layout = Layout::new(Level::Finetune);
        let layer =
            |(i, (rows, columns)): (usize, &(usize, usize))| layout.linear(&format!("x{i}"), &[*columns, *rows]);
        let layers = shapes.iter().enumerate().map(layer).collect();
        Inputs { layout, layers }
    }

    fn bind(&self, e: &mut DfdxCpu, inputs: &[Vec<f32>], record: bool) -> Vec<CpuTensor> {
        let mut values = vec![0.0; self.layout.len];
        for (layer, input) in self.layers.iter().zip(inputs) {
            values[layer.weight.range()].copy_from_slice(&transposed(input, layer.outputs));
        }
        e.bind(Level::Finetune, &Arc::new(Buffer::from_vec(values)), record);
        let identity = |n: usize| (0..n * n).map(|i| f32::from(u8::from(i % (n + 1) == 0))).collect();
        let layers = self.layers.iter();
        layers
            .map(|layer| {
                let one = e.constant(Arc::new(Buffer::from_vec(identity(layer.inputs))), layer.inputs, layer.inputs);
                e.linear(&one, layer)
            })
            .collect()
    }

    fn gradients(&self, of_all: &[f32]) -> Vec<Vec<f32>> {
        self.layers.iter().map(|layer| transposed(&of_all[layer.weight.range()], layer.inputs)).collect()
    }
}

fn transposed(values: &[f32], columns: usize) -> Vec<f32> {
    let rows = values.len() / columns;
    (0..values.len()).map(|i| values[i % rows * columns + i / rows]).collect()
}

fn run_fused(case: &Case, params: &Params, inputs: &[Vec<f32>], record: bool) -> (DfdxCpu, CpuTensor) {
    let arena = Arena::new();
    let mut e = if record { DfdxCpu::recording(&arena, 1, 1) } else { DfdxCpu::forward_only(&arena) };
    e.bind(Level::Pretrain, params, record);
    let tensors = Inputs::of(&case.inputs).bind(&mut e, inputs, record);
    let out = (case.fused)(&mut e, &tensors);
    (e, out)
}

fn check(case: &Case) {
    let params = params(&case.layout);
    let inputs: Vec<Vec<f32>> =
        case.inputs.iter().enumerate().map(|(i, (r, c))| draw(&format!("{}{i}", case.name), r * c)).collect();

    let (mut e, out) = run_fused(case, &params, &inputs, true);
    let values = e.values(&out).to_vec();
    let (_, plain) = run_fused(case, &params, &inputs, false);
    assert_eq!(values, plain.shared().to_vec(), "{}: recording changes the result", case.name);
    let cotangent = draw("cotangent", values.len());
    let mut gradients = e.backward(vec![(out, Buffer::from_vec(cotangent.clone()))]).unwrap();
    let dparams = gradients.pretrain.take().unwrap();
    let mut dinputs = Inputs::of(&case.inputs).gradients(&gradients.finetune.take().unwrap());
    if case.is_constant {
        dinputs.iter_mut().for_each(Vec::clear);
    }

    // dfdx's own operations.
    let dev = Cpu::default();
    let leaves: Vec<Plain<(usize, usize)>> =
        inputs.iter().zip(&case.inputs).map(|(v, &shape)| dev.tensor_from_vec(v.clone(), shape)).collect();
    let weights: Vec<Plain<(usize, usize)>> = case
        .layout
        .entries
        .iter()
        .map(|entry| {
            let (rows, columns) = if entry.shape.len() == 1 {
                (1, entry.len)
            } else {
                let rows = entry.shape.iter().take(entry.shape.len() - 1).product::<usize>();
                if entry.name.starts_with("patch") {
                    (entry.shape[0], entry.len / entry.shape[0])
                } else {
                    (rows, entry.len / rows)
                }
            };
            dev.tensor_from_vec(params[entry.range()].to_vec(), (rows, columns))
        })
        .collect();
    let taped = leaves.iter().map(|l| l.leaky_trace()).collect();
    let stock = (case.stock)(&dev, taped, weights.clone());
    assert_close(&format!("{} value", case.name), &values, &stock.as_vec(), 2e-5);
    let weighted = stock * dev.tensor_from_vec(cotangent.clone(), *plain_shape(&plain, &e));
    let grads = weighted.sum().backward();
    for (i, (ours, leaf)) in dinputs.iter().zip(&leaves).enumerate() {
        if !ours.is_empty() {
            assert_close(&format!("{} gradient of input {i}", case.name), ours, &grads.get(leaf).as_vec(), 5e-5);
        }
    }
    for (entry, weight) in case.layout.entries.iter().zip(&weights) {
        let name = format!("{} gradient of {}", case.name, entry.name);
        assert_close(&name, &dparams[entry.range()], &grads.get(weight).as_vec(), 5e-5);
    }

    // Finite differences along a random direction of everything at once.
    let h = 1e-2f32;
    let function = |sign: f32| {
        let direction = draw("direction", params.len());
        let moved = params.iter().zip(&direction).map(|(p, d)| p + sign * h * d).collect::<Vec<_>>();
        let inputs: Vec<Vec<f32>> = inputs
            .iter()
            .enumerate()
            .map(|(i, v)| {
                // Constants stay where they are.
                let h = if dinputs[i].is_empty() { 0.0 } else { h };
                v.iter().zip(draw(&format!("d{i}"), v.len())).map(|(x, d)| x + sign * h * d).collect()
            })
            .collect();
        let (_, out) = run_fused(case, &Arc::new(Buffer::from_vec(moved)), &inputs, false);
        out.shared().iter().zip(&cotangent).map(|(y, c)| f64::from(*y) * f64::from(*c)).sum::<f64>()
    };
    let measured = (function(1.0) - function(-1.0)) / (2.0 * f64::from(h));
    let product = |g: &[f32], d: &[f32]| g.iter().zip(d).map(|(g, d)| f64::from(*g) * f64::from(*d)).sum::<f64>();
    let mut predicted = product(&dparams, &draw("direction", params.len()));
    for (i, g) in dinputs.iter().enumerate().filter(|(_, g)| !g.is_empty()) {
        predicted += product(g, &draw(&format!("d{i}"), g.len()));
    }
    let scale = predicted.abs().max(1.0);
    assert!(
        (measured - predicted).abs() < 5e-3 * scale,
        "{}: finite difference {measured} against {predicted}",
        case.name
    );
}

fn plain_shape<'a>(out: &CpuTensor, e: &DfdxCpu) -> &'a (usize, usize) {
    Box::leak(Box::new(e.shape(out)))
}

fn stock_linear(
    x: Taped<(usize, usize)>,
    w: &Plain<(usize, usize)>,
    b: &Plain<(usize, usize)>,
) -> Taped<(usize, usize)> {
    let (rows, outputs) = (x.shape().0, w.shape().0);
    let b: Taped<(usize,)> = b.leaky_trace().reshape_like(&(outputs,));
    let y = x.matmul(w.leaky_trace().permute::<_, Axes2<1, 0>>());
    y + b.broadcast_like::<_, Axis<0>>(&(rows, outputs))
}

/// dfdx's exact GELU with a correct derivative: that of dfdx 0.13 lacks a factor 1/√2 in its second term (as the finite
/// differences show). So the tape gets the tangent, value + slope·(x − constant), with Φ(x) = gelu(x)/x from dfdx's
/// value.
fn stock_gelu(x: Taped<(usize, usize)>) -> Taped<(usize, usize)> {
    let (dev, shape) = (Cpu::default(), *x.shape());
    let (x, tape) = x.split_tape();
    let value = x.clone().accurate_gelu();
    let (xs, values) = (x.as_vec(), value.as_vec());
    let density = |x: f32| (-0.5 * x * x).exp() / std::f32::consts::TAU.sqrt();
    let slopes: Vec<f32> = xs.iter().zip(&values).map(|(&x, v)| v / x + x * density(x)).collect();
    let offsets: Vec<f32> = xs.iter().zip(&values).zip(&slopes).map(|((x, v), s)| v - x * s).collect();
    x.put_tape(tape) * dev.tensor_from_vec(slopes, shape) + dev.tensor_from_vec(offsets, shape)
}

fn linear_layout(inputs: usize, outputs: usize) -> (Layout, LinearWeights) {
    let mut layout = Layout::new(Level::Pretrain);
    let w = layout.linear("fc", &[outputs, inputs]);
    (layout, w)
}

#[test]
fn linear_layers_with_what_is_fused_after_them() {
    let (layout, w) = linear_layout(7, 5);
    let plain = |e: &mut DfdxCpu, x: &[CpuTensor]| e.linear(&x[0], &w);
    let gelu = |e: &mut DfdxCpu, x: &[CpuTensor]| e.linear_gelu(&x[0], &w);
    let add = |e: &mut DfdxCpu, x: &[CpuTensor]| e.linear_add(&x[0], &w, &x[1]);
    let case = |name, inputs| Case {
        name,
        layout: layout.clone(),
        inputs,
        is_constant: false,
        fused: &plain,
        stock: &|_, mut x, p| stock_linear(x.remove(0), &p[0], &p[1]),
    };
    check(&case("linear", vec![(6, 7)]));
    check(&Case {
        fused: &gelu,
        stock: &|_, mut x, p| stock_gelu(stock_linear(x.remove(0), &p[0], &p[1])),
        ..case("linear_gelu", vec![(6, 7)])
    });
    check(&Case {
        fused: &add,
        stock: &|_, mut x, p| {
            let residual = x.pop().unwrap();
            stock_linear(x.remove(0), &p[0], &p[1]) + residual
        },
        ..case("linear_add", vec![(6, 7), (6, 5)])
    });
}

#[test]
fn mlp_of_a_block() {
    let mut layout = Layout::new(Level::Pretrain);
    let (fc1, fc2) = (layout.linear("fc1", &[9, 5]), layout.linear("fc2", &[5, 9]));
    check(&Case {
        name: "mlp",
        layout,
        inputs: vec![(6, 5), (6, 5)],
        is_constant: false,
        fused: &|e, x| e.mlp(&x[0], &fc1, &fc2, &x[1]),
        stock: &|_, mut x, p| {
            let residual = x.pop().unwrap();
            let hidden = stock_gelu(stock_linear(x.remove(0), &p[0], &p[1]));
            stock_linear(hidden, &p[2], &p[3]) + residual
        },
    });
}

#[test]
fn layer_norm() {
    let mut layout = Layout::new(Level::Pretrain);
    let w: NormWeights = layout.norm("norm", 11);
    check(&Case {
        name: "layer_norm",
        layout,
        inputs: vec![(9, 11)],
        is_constant: false,
        fused: &|e, x| e.layer_norm(&x[0], &w),
        stock: &|_, mut x, p| {
            let x = x.pop().unwrap();
            let shape = *x.shape();
            let vector = |t: &Plain<(usize, usize)>| -> Taped<(usize,)> { t.leaky_trace().reshape_like(&(shape.1,)) };
            let normed = x.normalize::<Axis<1>>(1e-6);
            normed * vector(&p[0]).broadcast_like::<_, Axis<0>>(&shape)
                + vector(&p[1]).broadcast_like::<_, Axis<0>>(&shape)
        },
    });
}

#[test]
fn attention_with_all_and_with_one_query() {
    for queries in [5, 1] {
        let shape = AttentionShape { batch: 2, tokens: 5, heads: 3, head_dim: 4, queries };
        let dim = 12;
        check(&Case {
            name: "attention",
            layout: Layout::new(Level::Pretrain),
            inputs: vec![(10, 3 * dim)],
            is_constant: false,
            fused: &|e, x| e.attention(&x[0], &shape),
            stock: &|_, mut x, _| {
                let qkv = x.pop().unwrap().reshape_like(&(2usize, 5usize, 3usize, 3usize, 4usize));
                // [3, batch, heads, tokens, head_dim]
                let qkv = qkv.permute::<_, Axes5<2, 0, 3, 1, 4>>().reshape_like(&(3usize, 6usize, 5usize, 4usize));
                let (qkv, tape) = qkv.split_tape();
                let dev = Cpu::default();
                let pick = |i: usize| dev.tensor(i);
                let q = qkv.clone().put_tape(tape).select(pick(0));
                let k = qkv.retaped::<OwnedTape<f32, Cpu>>().select(pick(1)).permute::<_, Axes3<0, 2, 1>>();
                let v = qkv.retaped::<OwnedTape<f32, Cpu>>().select(pick(2));
                let probs = (q.matmul(k) * 0.5).softmax::<Axis<2>>();
                let out = probs.matmul(v).reshape_like(&(2usize, 3usize, 5usize, 4usize));
                let out = out.permute::<_, Axes4<0, 2, 1, 3>>();
                let out: Taped<(usize, usize, usize)> = out.reshape_like(&(2usize, 5usize, dim));
                if queries == 5 {
                    out.reshape_like(&(10usize, dim))
                } else {
                    let rows = out.reshape_like(&(10usize, dim));
                    rows.gather(dev.tensor_from_vec(vec![0usize, 5], (2usize,)))
                }
            },
        });
    }
}

fn order() -> Arc<TokenOrder> {
    order_by_keys(&draw("keys", 8), 4, 2)
}

#[test]
fn tokens_of_all_and_of_the_visible_patches() {
    let mut layout = Layout::new(Level::Pretrain);
    let cls = layout.add("cls", &[1, 1, 6]);
    let pos = layout.add("pos", &[1, 5, 6]);
    let proj = layout.linear("patch", &[6, 3]);
    let w = TokenWeights { proj, cls, pos };
    for order in [None, Some(order())] {
        check(&Case {
            name: "tokens",
            layout: layout.clone(),
            inputs: vec![(8, 3)],
            is_constant: true,
            fused: &|e, x| {
                // Patches must be constants: the engine computes no gradient for them.
                let (rows, columns) = e.shape(&x[0]);
                let constant = e.constant(x[0].shared(), rows, columns);
                e.tokens(&constant, 4, order.as_ref(), &w)
            },
            stock: &|dev, mut x, p| {
                let embedded = stock_linear(x.pop().unwrap(), &p[2], &p[3]);
                let visible: Vec<usize> = match &order {
                    None => (0..8).collect(),
                    Some(o) => o.kept.iter().enumerate().map(|(i, &patch)| i / 2 * 4 + patch as usize).collect(),
                };
                let per_image = visible.len() / 2;
                let rows = embedded.gather(dev.tensor_from_vec(visible.clone(), (visible.len(),)));
                // CLS rows and positions are gathered too, so that the tokens are one sum.
                let all = [p[0].leaky_trace(), p[0].leaky_trace()];
                let [first, second] = all;
                let stacked = (first, rows).concat_along(Axis::<0>);
                let _ = second;
                let mut source = Vec::new();
                let mut position = Vec::new();
                for image in 0..2 {
                    source.push(0);
                    position.push(0);
                    for i in 0..per_image {
                        source.push(1 + image * per_image + i);
                        position.push(1 + visible[image * per_image + i] % 4);
                    }
                }
                let n = source.len();
                let tokens = stacked.gather(dev.tensor_from_vec(source, (n,)));
                tokens + p[1].leaky_trace().gather(dev.tensor_from_vec(position, (n,)))
            },
        });
    }
}

#[test]
fn unshuffle_puts_visible_tokens_back_and_fills_the_rest() {
    let order = order();
    let mut layout = Layout::new(Level::Pretrain);
    let token = layout.add("token", &[1, 1, 3]);
    let pos = layout.add("pos", &[1, 5, 3]);
    check(&Case {
        name: "unshuffle",
        layout,
        inputs: vec![(6, 3)],
        is_constant: false,
        fused: &|e, x| e.unshuffle(&x[0], &order, &token, &pos),
        stock: &|dev, mut x, p| {
            let stacked = (x.pop().unwrap(), p[0].leaky_trace()).concat_along(Axis::<0>);
            let (mut source, mut position) = (Vec::new(), Vec::new());
            for image in 0..2 {
                source.push(3 * image);
                position.push(0);
                for patch in 0..4 {
                    let rank = order.rank[4 * image + patch] as usize;
                    source.push(if rank < 2 { 3 * image + 1 + rank } else { 6 });
                    position.push(1 + patch);
                }
            }
            let tokens = stacked.gather(dev.tensor_from_vec(source, (10usize,)));
            tokens + p[1].leaky_trace().gather(dev.tensor_from_vec(position, (10usize,)))
        },
    });
}

#[test]
fn row_picks_and_patch_loss() {
    let none = || Layout::new(Level::Pretrain);
    check(&Case {
        name: "first_rows",
        layout: none(),
        inputs: vec![(6, 4)],
        is_constant: false,
        fused: &|e, x| e.first_rows(&x[0], 3),
        stock: &|dev, mut x, _| x.pop().unwrap().gather(dev.tensor_from_vec(vec![0usize, 3], (2usize,))),
    });
    check(&Case {
        name: "rest_rows",
        layout: none(),
        inputs: vec![(6, 4)],
        is_constant: false,
        fused: &|e, x| e.rest_rows(&x[0], 3),
        stock: &|dev, mut x, _| x.pop().unwrap().gather(dev.tensor_from_vec(vec![1usize, 2, 4, 5], (4usize,))),
    });
    let target = draw("target", 15);
    let shared = Arc::new(Buffer::from_vec(target.clone()));
    check(&Case {
        name: "patch_loss",
        layout: none(),
        inputs: vec![(5, 3)],
        is_constant: false,
        fused: &|e, x| {
            let target = e.constant(shared.clone(), 5, 3);
            e.patch_loss(&x[0], &target)
        },
        stock: &|dev, mut x, _| {
            let difference = x.pop().unwrap() - dev.tensor_from_vec(target.clone(), (5usize, 3usize));
            let mean: Taped<(usize,)> = difference.square().mean::<_, Axis<1>>();
            mean.reshape_like(&(5usize, 1usize))
        },
    });
}

/// The gradient of a weight goes to the sum only when every operation that uses the weight has added to it.
#[test]
fn a_weight_may_be_used_more_than_once() {
    let (layout, w) = linear_layout(4, 4);
    check(&Case {
        name: "twice",
        layout,
        inputs: vec![(6, 4)],
        is_constant: false,
        fused: &|e, x| {
            let hidden = e.linear(&x[0], &w);
            e.linear_add(&hidden, &w, &x[0])
        },
        stock: &|_, mut x, w| {
            let x = x.remove(0);
            let residual = x.retaped::<OwnedTape<f32, Cpu>>();
            stock_linear(stock_linear(x, &w[0], &w[1]), &w[0], &w[1]) + residual
        },
    });
}
