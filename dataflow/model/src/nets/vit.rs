//! Encoder and decoder of the masked autoencoder (MAE, arXiv 2111.06377): pre-norm vision transformers, with the tensor
//! names of MAE's code.

use std::sync::Arc;

use crate::config::{ModelConfig, PosEmbed};
use crate::engine::{AttentionShape, Engine, TokenWeights};
use crate::init;
use crate::layout::{Layout, LinearWeights, NormWeights, SharedLayout, Weight};
use crate::level::Level;
use crate::parallel::arena::Buffer;
use crate::tap::Tap;

/// Weights of one transformer block: x += proj(attention(norm1(x))), x += fc2(gelu(fc1(norm2(x)))).
#[derive(Clone, Copy, Debug)]
struct Block {
    norm1: NormWeights,
    qkv: LinearWeights,
    proj: LinearWeights,
    norm2: NormWeights,
    fc1: LinearWeights,
    fc2: LinearWeights,
    heads: usize,
}

impl Block {
    fn new(layout: &mut Layout, name: &str, dim: usize, heads: usize) -> Self {
        Block {
            norm1: layout.norm(&format!("{name}.norm1"), dim),
            qkv: layout.linear(&format!("{name}.attn.qkv"), &[3 * dim, dim]),
            proj: layout.linear(&format!("{name}.attn.proj"), &[dim, dim]),
            norm2: layout.norm(&format!("{name}.norm2"), dim),
            fc1: layout.linear(&format!("{name}.mlp.fc1"), &[4 * dim, dim]),
            fc2: layout.linear(&format!("{name}.mlp.fc2"), &[dim, 4 * dim]),
            heads,
        }
    }

    /// `x` is `[batch·tokens, dim]`. With `only_cls` the output is the first token of each image alone, `[batch, dim]`:
    /// the others serve as its keys and values, and their own attention output, projection and MLP are not computed.
    fn forward<E: Engine>(&self, e: &mut E, x: &E::Tensor, tokens: usize, only_cls: bool) -> E::Tensor {
        self.forward_with_qkv(e, x, tokens, only_cls).0
    }

    /// As [`forward`](Self::forward), and the queries, keys and values `[batch·tokens, 3·dim]`.
    fn forward_with_qkv<E: Engine>(
        &self,
        e: &mut E,
        x: &E::Tensor,
        tokens: usize,
        only_cls: bool,
    ) -> (E::Tensor, E::Tensor) {
        let (rows, dim) = e.shape(x);
        let shape = AttentionShape {
            batch: rows / tokens,
            tokens,
            heads: self.heads,
            head_dim: dim / self.heads,
            queries: if only_cls { 1 } else { tokens },
        };
        let normed = e.layer_norm(x, &self.norm1);
        let qkv = e.linear(&normed, &self.qkv);
        let attended = e.attention(&qkv, &shape);
        let residual = if only_cls { e.first_rows(x, tokens) } else { x.clone() };
        let x = e.linear_add(&attended, &self.proj, &residual);
        let normed = e.layer_norm(&x, &self.norm2);
        (e.mlp(&normed, &self.fc1, &self.fc2, &x), qkv)
    }
}

/// The masked autoencoder θ.
#[derive(Clone, Debug)]
pub struct Vit {
    /// Shapes.
    pub config: ModelConfig,
    /// Names and places of the weights.
    pub layout: SharedLayout,
    /// Values of the encoder, which come first in the flat vector; the decoder's follow.
    pub encoder_len: usize,
    tokens: TokenWeights,
    blocks: Vec<Block>,
    norm: NormWeights,
    dec_embed: LinearWeights,
    mask_token: Weight,
    dec_pos: Weight,
    dec_blocks: Vec<Block>,
    dec_norm: NormWeights,
    dec_pred: LinearWeights,
}

impl Vit {
    /// Lays the weights out for `config`.
    #[must_use]
    pub fn new(config: &ModelConfig) -> Self {
        let c = config;
        let num_tokens = c.num_patches() + 1;
        let mut layout = Layout::new(Level::Pretrain);
        let add_pos = |layout: &mut Layout, name: &str, dim: usize| match c.pos_embed {
            PosEmbed::Trained => layout.add(name, &[1, num_tokens, dim]),
            PosEmbed::Frozen => layout.add_frozen(name, &[1, num_tokens, dim]),
        };
        let cls = layout.add("cls_token", &[1, 1, c.dim]);
        let pos = add_pos(&mut layout, "pos_embed", c.dim);
        let proj = layout.linear("patch_embed.proj", &[c.dim, c.channels, c.patch, c.patch]);
        let blocks = (0..c.depth).map(|i| Block::new(&mut layout, &format!("blocks.{i}"), c.dim, c.heads)).collect();
        let norm = layout.norm("norm", c.dim);
        let encoder_len = layout.len;
        let dec_embed = layout.linear("decoder_embed", &[c.dec_dim, c.dim]);
        let mask_token = layout.add("mask_token", &[1, 1, c.dec_dim]);
        let dec_pos = add_pos(&mut layout, "decoder_pos_embed", c.dec_dim);
        let dec_blocks = (0..c.dec_depth)
            .map(|i| Block::new(&mut layout, &format!("decoder_blocks.{i}"), c.dec_dim, c.dec_heads))
            .collect();
        let dec_norm = layout.norm("decoder_norm", c.dec_dim);
        let dec_pred = layout.linear("decoder_pred", &[c.patch_values(), c.dec_dim]);
        Vit {
            config: c.clone(),
            layout: Arc::new(layout),
            encoder_len,
            tokens: TokenWeights { proj, cls, pos },
            blocks,
            norm,
            dec_embed,
            mask_token,
            dec_pos,
            dec_blocks,
            dec_norm,
            dec_pred,
        }
    }

    /// Initial values as in MAE: Xavier uniform linear layers with zero biases, sin-cos positions, N(0, 0.02²) tokens.
    #[must_use]
    pub fn init(&self, seed: u64) -> Buffer {
        let mut values = vec![0.0; self.layout.len];
        for entry in &self.layout.entries {
            let slot = &mut values[entry.range()];
            let mut rng = init::tensor_rng(seed, &entry.name);
            match entry.name.as_str() {
                "pos_embed" => init::sincos_2d(slot, self.config.dim, self.config.grid()),
                "decoder_pos_embed" => init::sincos_2d(slot, self.config.dec_dim, self.config.grid()),
                "cls_token" | "mask_token" => init::normals(slot, 0.02, &mut rng),
                _ if entry.is_matrix() => {
                    let outputs = entry.shape[0];
                    init::xavier_uniform(slot, entry.len / outputs, outputs, &mut rng);
                }
                name if name.ends_with(".weight") => slot.fill(1.0),
                _ => {}
            }
        }
        Buffer::from_vec(values)
    }

    /// Weights of the patch embedding, whose output the masking network may read.
    #[must_use]
    pub fn token_weights(&self) -> &TokenWeights {
        &self.tokens
    }

    /// Encoder output `[batch·(1+n), dim]` of the visible patches (all of them without `order`); `patches` is
    /// `[batch·L, values]`.
    pub fn encode<E: Engine>(&self, e: &mut E, patches: &E::Tensor, order: Option<&E::Order>) -> E::Tensor {
        let num_patches = self.config.num_patches();
        let num_tokens = 1 + order.map_or(num_patches, |order| e.num_visible(order));
        let mut x = e.tokens(patches, num_patches, order, &self.tokens);
        for block in &self.blocks {
            x = block.forward(e, &x, num_tokens, false);
        }
        e.layer_norm(&x, &self.norm)
    }

    /// What the encoder makes of all patches at the given taps, `[batch·tokens, dim]` with the tokens of
    /// [`Tap::tokens`]. `patches` is `[batch·L, values]`; blocks that are read must exist.
    ///
    /// Where only CLS is read, the last block computes the output of that token alone; blocks above the last that is read
    /// are not computed.
    pub fn taps<E: Engine>(&self, e: &mut E, patches: &E::Tensor, taps: &[Tap]) -> Vec<E::Tensor> {
        let num_tokens = 1 + self.config.num_patches();
        let only_cls = taps.iter().all(|tap| *tap == Tap::Cls);
        let last = taps.iter().map(|tap| if let Tap::Layer(block) = tap { *block } else { self.blocks.len() - 1 });
        let num_blocks = last.max().map_or(0, |last| last + 1);
        let mut x = e.tokens(patches, num_tokens - 1, None, &self.tokens);
        let mut outputs = Vec::with_capacity(num_blocks);
        for (i, block) in self.blocks[..num_blocks].iter().enumerate() {
            x = block.forward(e, &x, num_tokens, only_cls && i + 1 == self.blocks.len());
            outputs.push(taps.contains(&Tap::Layer(i)).then(|| x.clone()));
        }
        let normed = taps.iter().any(|tap| matches!(tap, Tap::Cls | Tap::Patches));
        let normed = normed.then(|| e.layer_norm(&x, &self.norm));
        let tap = |tap: &Tap| match (tap, &normed) {
            (Tap::Cls, Some(normed)) if only_cls => normed.clone(),
            (Tap::Cls, Some(normed)) => e.first_rows(normed, num_tokens),
            (Tap::Patches, Some(normed)) => e.rest_rows(normed, num_tokens),
            (Tap::Layer(block), _) => outputs[*block].clone().unwrap_or_else(|| x.clone()),
            (Tap::Cls | Tap::Mean | Tap::Patches, _) => {
                let rows = e.rest_rows(&x, num_tokens);
                e.mean_rows(&rows, num_tokens - 1)
            }
        };
        taps.iter().map(tap).collect()
    }

    /// Queries, keys and values of each block in order, over all patches: `[batch·(1+L), 3·dim]`, side by side; of the
    /// last block queries and keys alone, `[batch·(1+L), 2·dim]`. `patches` is `[batch·L, values]`.
    pub fn queries_and_keys<E: Engine>(&self, e: &mut E, patches: &E::Tensor) -> Vec<E::Tensor> {
        let (num_tokens, dim) = (1 + self.config.num_patches(), self.config.dim);
        let mut x = e.tokens(patches, num_tokens - 1, None, &self.tokens);
        let (last, before) = self.blocks.split_last().expect("invariant: an encoder has a block");
        let mut all = Vec::with_capacity(self.blocks.len());
        for block in before {
            let (next, qkv) = block.forward_with_qkv(e, &x, num_tokens, false);
            x = next;
            all.push(qkv);
        }
        let normed = e.layer_norm(&x, &last.norm1);
        all.push(e.linear(&normed, &last.qkv.outputs(0..2 * dim)));
        all
    }

    /// What CLS looks at in the last block, over all patches: its queries `[batch, dim]` and the keys of all tokens
    /// `[batch·(1+L), dim]`, heads side by side. `patches` is `[batch·L, values]`. The rest of the block is not computed.
    pub fn cls_queries_and_keys<E: Engine>(&self, e: &mut E, patches: &E::Tensor) -> [E::Tensor; 2] {
        let (num_tokens, dim) = (1 + self.config.num_patches(), self.config.dim);
        let mut x = e.tokens(patches, num_tokens - 1, None, &self.tokens);
        let (last, before) = self.blocks.split_last().expect("invariant: an encoder has a block");
        for block in before {
            x = block.forward(e, &x, num_tokens, false);
        }
        let normed = e.layer_norm(&x, &last.norm1);
        let cls = e.first_rows(&normed, num_tokens);
        [e.linear(&cls, &last.qkv.outputs(0..dim)), e.linear(&normed, &last.qkv.outputs(dim..2 * dim))]
    }

    /// Predicted patches `[batch·L, values]`, value order (row, column, channel), in units of the normalised target.
    /// `patches` is `[batch·L, values]`, value order (channel, row, column), of which the encoder gets those visible
    /// under `order`.
    pub fn reconstruct<E: Engine>(&self, e: &mut E, patches: &E::Tensor, order: &E::Order) -> E::Tensor {
        let num_tokens = 1 + self.config.num_patches();
        let z = self.encode(e, patches, Some(order));
        let z = e.linear(&z, &self.dec_embed);
        let mut y = e.unshuffle(&z, order, &self.mask_token, &self.dec_pos);
        for block in &self.dec_blocks {
            y = block.forward(e, &y, num_tokens, false);
        }
        let y = e.rest_rows(&y, num_tokens);
        let y = e.layer_norm(&y, &self.dec_norm);
        e.linear(&y, &self.dec_pred)
    }
}
