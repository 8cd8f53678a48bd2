//! Attention against its formulas in f64.

use half::bf16;

use super::{AttentionShape, MMA_FORWARD, MMA_GRAD_OF_KEYS, MMA_GRAD_OF_QUERIES, MMA_TANGENT};
use crate::memory::{Act, ActView, View};
use crate::stream::{Precision, Priority, Stream};
use crate::testing::schedules;
use crate::twins::attention::{error, twin};
use crate::twins::wide;

/// Values around 0 with a deviation of `size`, equal for equal seeds.
fn values(len: usize, size: f32, seed: u64) -> Vec<f32> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let mut uniform = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 40) as f32 / (1 << 24) as f32 - 0.5
    };
    (0..len).map(|_| size * 2.0 * (uniform() + uniform() + uniform())).collect()
}

/// A stream that talks in f32 to the host.
struct Device(Stream);

impl Device {
    fn act(&self, values: &[f32]) -> Act {
        match self.0.precision() {
            Precision::Bf16 => Act::Bf16(self.0.upload(&values.iter().map(|v| bf16::from_f32(*v)).collect::<Vec<_>>())),
            _ => Act::F32(self.0.upload(values)),
        }
    }

    /// Nothing that a kernel could have written.
    fn nan(&self, len: usize) -> Act {
        self.act(&vec![f32::NAN; len])
    }

    fn read(&self, view: ActView) -> Vec<f32> {
        match view {
            ActView::F32(view) => self.0.download(view).expect("download"),
            ActView::Bf16(view) => self.0.download(view).expect("download").into_iter().map(bf16::to_f32).collect(),
        }
    }

    fn read_f32(&self, view: View<f32>) -> Vec<f32> {
        self.read(ActView::F32(view))
    }
}

/// Holds all three operations against the twin.
fn check(shape: AttentionShape, precision: Precision, size: f32) {
    let width = shape.heads * shape.head_dim;
    let (len, out_len) = (shape.batch * shape.tokens * 3 * width, shape.batch * shape.queries * width);
    let is_bf16 = precision == Precision::Bf16;
    let rounded = |values: Vec<f32>| -> Vec<f32> {
        values.into_iter().map(|v| if is_bf16 { bf16::from_f32(v).to_f32() } else { v }).collect()
    };
    let [qkv, along, dy] =
        [(len, size, 1), (len, 1.0, 2), (out_len, 1.0, 3)].map(|(len, size, seed)| rounded(values(len, size, seed)));
    let [y, lse, dqkv, again, tangent] = schedules(|gpu| {
        let device = Device(Stream::new(gpu, precision, Priority::Normal).expect("stream"));
        let stream = &device.0;
        let (on_qkv, on_dy, on_along) = (device.act(&qkv), device.act(&dy), device.act(&along));
        let [y, again, tangent] = [0; 3].map(|_| device.nan(out_len));
        let (dqkv, lse) = (device.nan(len), stream.upload(&vec![f32::NAN; shape.batch * shape.heads * shape.queries]));
        stream.attention(y.view(), lse.view(), on_qkv.view(), &shape);
        stream.attention_grad(dqkv.view(), on_dy.view(), y.view(), on_qkv.view(), lse.view(), &shape);
        stream.attention_tangent(again.view(), tangent.view(), on_qkv.view(), on_along.view(), &shape);
        let read = |act: &Act| device.read(act.view());
        [read(&y), device.read_f32(lse.view()), read(&dqkv), read(&again), read(&tangent)]
    });
    let twin = twin(&shape, &wide(&qkv), &wide(&dy), &wide(&along));
    let limit = match precision {
        Precision::F32 => 2e-6,
        Precision::Tf32 => 1.5e-3,
        Precision::Bf16 => 8e-3,
    };
    // Scores near 0 are small beside what rounding changes.
    let lse_limit = if precision == Precision::Tf32 { limit } else { 2e-6 };
    let results = [
        ("y", &y, &twin.y, limit),
        ("lse", &lse, &twin.lse, lse_limit),
        ("gradient", &dqkv, &twin.dqkv, limit),
        ("y beside its tangent", &again, &twin.y, limit),
        ("tangent", &tangent, &twin.tangent, limit),
    ];
    for (what, got, want, limit) in results {
        let error = error(got, want);
        assert!(error < limit, "{what} of {shape:?} in {precision:?}: error {error:.1e}");
    }
}

/// All tokens as queries, and the first alone.
fn check_both(tokens: usize, heads: usize, head_dim: usize) {
    let all = [1, tokens];
    for queries in all[usize::from(tokens == 1)..].iter().copied() {
        let shape = AttentionShape { batch: 1 + tokens % 2, tokens, heads, head_dim, queries };
        check(shape, Precision::F32, 1.0);
        check(shape, Precision::Bf16, 1.0);
        // Others have the kernels of f32.
        if matches!(head_dim, 32 | 64) {
            check(shape, Precision::Tf32, 1.0);
        }
    }
}

#[test]
fn all_head_dimensions_are_right() {
    for (head_dim, heads) in [(4, 3), (8, 1), (32, 2), (48, 1), (64, 3), (5, 2), (80, 1), (136, 2)] {
        for tokens in [1, 2, 17, 65] {
            check_both(tokens, heads, head_dim);
        }
    }
}

#[test]
fn many_tokens_are_right() {
    for head_dim in [32, 64] {
        for queries in [1, 100, 257] {
            let shape = AttentionShape { batch: 1, tokens: 257, heads: 1, head_dim, queries };
            check(shape, Precision::F32, 1.0);
            check(shape, Precision::Tf32, 1.0);
            // Probabilities that few keys share.
            check(shape, Precision::Bf16, 3.0);
        }
    }
}

#[test]
fn more_keys_than_shared_memory_holds_are_right() {
    let shape = AttentionShape { batch: 1, tokens: 900, heads: 1, head_dim: 64, queries: 70 };
    assert!(MMA_FORWARD.plan("attention_mma", "bf16", &shape, [70, 900], 227 << 10).sizes[5] < 900);
    check(shape, Precision::Bf16, 1.0);
    check(AttentionShape { tokens: 450, ..shape }, Precision::Tf32, 1.0);
}

#[test]
fn unaligned_views_are_right() {
    let shape = AttentionShape { batch: 2, tokens: 9, heads: 1, head_dim: 32, queries: 9 };
    let (len, out_len) = (2 * 9 * 96, 2 * 9 * 32);
    let qkv: Vec<f32> = values(len + 1, 1.0, 5).iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
    let y = schedules(|gpu| {
        let device = Device(Stream::new(gpu, Precision::Bf16, Priority::Normal).expect("stream"));
        let (on_qkv, y, lse) = (device.act(&qkv), device.nan(out_len + 3), device.0.zeros::<f32>(18));
        device.0.attention(y.view().slice(3..out_len + 3), lse.view(), on_qkv.view().slice(1..len + 1), &shape);
        device.read(y.view().slice(3..out_len + 3))
    });
    let zeros = vec![0.0; len];
    let want = twin(&shape, &wide(&qkv[1..]), &zeros[..out_len], &zeros);
    assert!(error(&y, &want.y) < 8e-3);
}

#[test]
fn blocks_fit_devices_with_little_shared_memory() {
    let kernels = [MMA_FORWARD, MMA_GRAD_OF_QUERIES, MMA_GRAD_OF_KEYS, MMA_TANGENT];
    for tokens in [1, 65, 257, 1024] {
        for (rows, suffix, head_dim) in kernels
            .iter()
            .flat_map(|rows| [(rows, "bf16", 32), (rows, "bf16", 64), (rows, "f32", 32), (rows, "f32", 64)])
        {
            let shape = AttentionShape { batch: 1, tokens, heads: 1, head_dim, queries: tokens };
            for limit in [99 << 10, 163 << 10, 227 << 10] {
                let plan = rows.plan("kernel", suffix, &shape, [tokens; 2], limit);
                let [.., groups, rounds, piece] = plan.sizes[..] else { panic!("sizes of {shape:?}") };
                assert!(plan.shared_bytes <= limit && plan.warps <= 12);
                assert!(groups * rounds * plan.warps * 16 >= tokens && (piece >= tokens || piece % 64 == 0));
                assert!(rounds == 1 || piece >= tokens);
            }
        }
    }
}

/// Training that diverges has scores whose rounding alone is hundreds: results may be anything but NaN.
#[test]
fn scores_of_a_billion_stay_finite() {
    for (head_dim, precision) in
        [(8, Precision::F32), (32, Precision::Tf32), (64, Precision::Bf16), (8, Precision::Bf16)]
    {
        let shape = AttentionShape { batch: 1, tokens: 33, heads: 1, head_dim, queries: 33 };
        let (len, out_len) = (33 * 3 * head_dim, 33 * head_dim);
        let [qkv, dy, along] =
            [(len, 3e4, 1), (out_len, 1.0, 2), (len, 1.0, 3)].map(|(n, size, seed)| values(n, size, seed));
        let device = Device(Stream::new(&crate::testing::gpu(), precision, Priority::Normal).expect("stream"));
        let stream = &device.0;
        let (qkv, dy, along) = (device.act(&qkv), device.act(&dy), device.act(&along));
        let [y, again, tangent] = [0; 3].map(|_| device.nan(out_len));
        let (dqkv, lse) = (device.nan(len), stream.upload(&[f32::NAN; 33]));
        stream.attention(y.view(), lse.view(), qkv.view(), &shape);
        stream.attention_grad(dqkv.view(), dy.view(), y.view(), qkv.view(), lse.view(), &shape);
        stream.attention_tangent(again.view(), tangent.view(), qkv.view(), along.view(), &shape);
        for (what, values) in [("y", y), ("gradient", dqkv), ("y beside its tangent", again), ("tangent", tangent)] {
            let values = device.read(values.view());
            assert!(values.iter().all(|value| value.is_finite()), "{what} of {head_dim} in {precision:?}");
        }
    }
}
