//! Masks from a share of each part of an image at the start to whole parts at the end (SemMAE, arXiv 2206.10207). A
//! part is a cluster of the teacher's patch tokens; SemMAE learns its parts beforehand, with a network of their own.

use std::sync::Arc;

use rand_chacha::ChaCha8Rng;

use super::kind::{MaskRule, Masking, MaskingFacts, MaskingKind, Needs};
use crate::choice::Named;
use crate::rng::{shuffle, uniform};

/// The entry of [`super::MASKINGS`].
#[derive(Debug)]
pub struct Kind;

impl Named for Kind {
    fn name(&self) -> &'static str {
        "parts"
    }
    fn summary(&self) -> &'static str {
        "From a share of each part of an image to whole parts, clusters of patch tokens (SemMAE): levels 2 and 3 rest"
    }
}

impl MaskingKind for Kind {
    fn is_learned(&self) -> bool {
        false
    }
    fn reads_teacher(&self) -> bool {
        true
    }
    fn build(&self, facts: &MaskingFacts) -> Arc<dyn Masking> {
        let (num_patches, dim) = (facts.num_patches(), facts.dim);
        Arc::new(Parts { num_patches, dim, num_visible: facts.num_visible, num_parts: facts.num_parts })
    }
}

/// Masks by parts.
#[derive(Clone, Debug)]
pub struct Parts {
    num_patches: usize,
    dim: usize,
    num_visible: usize,
    num_parts: usize,
}

/// Rounds of k-means; it rests where no patch changes its cluster.
const MAX_ROUNDS: usize = 10;

fn distance(a: &[f32], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| (f64::from(*a) - b).powi(2)).sum()
}

/// The nearest of `centres` to a point, the first of equals, and its squared distance.
fn nearest(point: &[f32], centres: &[Vec<f64>]) -> (usize, f64) {
    let distances = centres.iter().map(|centre| distance(point, centre)).enumerate();
    distances.fold((0, f64::INFINITY), |best, of| if of.1 < best.1 { of } else { best })
}

/// The cluster of each of the points `[points, dim]`: Lloyd's k-means from centres drawn as k-means++ does, with at most
/// `num` clusters. A cluster that loses all points keeps its centre.
#[must_use]
pub fn k_means(points: &[f32], dim: usize, num: usize, rng: &mut ChaCha8Rng) -> Vec<usize> {
    let rows: Vec<&[f32]> = points.chunks_exact(dim).collect();
    let wide = |row: &[f32]| row.iter().map(|&value| f64::from(value)).collect::<Vec<f64>>();
    let first = (uniform(rng) * rows.len() as f64) as usize;
    let mut centres = vec![wide(rows[first])];
    while centres.len() < num {
        let distances: Vec<f64> = rows.iter().map(|row| nearest(row, &centres).1).collect();
        let total: f64 = distances.iter().sum();
        if total <= 0.0 || !total.is_finite() {
            // Fewer distinct points than clusters.
            break;
        }
        let mut left = uniform(rng) * total;
        let drawn = distances.iter().position(|distance| {
            left -= distance;
            left < 0.0
        });
        centres.push(wide(rows[drawn.unwrap_or(rows.len() - 1)]));
    }
    let mut clusters: Vec<usize> = rows.iter().map(|row| nearest(row, &centres).0).collect();
    for _ in 0..MAX_ROUNDS {
        for (cluster, centre) in centres.iter_mut().enumerate() {
            let members = || rows.iter().zip(&clusters).filter(|(_, of)| **of == cluster).map(|(row, _)| row);
            let num_members = members().count();
            if num_members > 0 {
                centre.fill(0.0);
                members()
                    .for_each(|row| centre.iter_mut().zip(*row).for_each(|(sum, &value)| *sum += f64::from(value)));
                centre.iter_mut().for_each(|sum| *sum /= num_members as f64);
            }
        }
        let next: Vec<usize> = rows.iter().map(|row| nearest(row, &centres).0).collect();
        if next == clusters {
            break;
        }
        clusters = next;
    }
    clusters
}

/// How many patches of each part are masked, `num_masked` together: λ·nₚ·r + (1 − λ)·wₚ with r the mask ratio, where wₚ
/// are those masked if parts are masked whole, in the order `whole`, until there are enough; rounded to the sum by the
/// largest remainders. λ = 1 − progress².
#[must_use]
pub fn masked_of_parts(sizes: &[usize], whole: &[usize], num_masked: usize, progress: f64) -> Vec<usize> {
    let num_patches: usize = sizes.iter().sum();
    let lambda = 1.0 - progress * progress;
    let ratio = num_masked as f64 / num_patches.max(1) as f64;
    let (mut left, mut wanted) = (num_masked, vec![0.0; sizes.len()]);
    for &part in whole {
        let of_whole = sizes[part].min(left);
        left -= of_whole;
        wanted[part] = lambda * sizes[part] as f64 * ratio + (1.0 - lambda) * of_whole as f64;
    }
    // Sums that come to whole numbers may be a rounding error below them.
    let mut masked: Vec<usize> = wanted.iter().map(|wanted| (wanted + 1e-9).floor() as usize).collect();
    let mut parts: Vec<usize> = (0..sizes.len()).collect();
    let remainder = |part: usize| wanted[part] - (wanted[part] + 1e-9).floor();
    parts.sort_by(|&a, &b| remainder(b).total_cmp(&remainder(a)));
    let mut left = num_masked.saturating_sub(masked.iter().sum());
    while left > 0 {
        let before = left;
        for &part in &parts {
            if left > 0 && masked[part] < sizes[part] {
                masked[part] += 1;
                left -= 1;
            }
        }
        if left == before {
            break;
        }
    }
    masked
}

impl Masking for Parts {
    fn needs(&self) -> Needs {
        Needs::Tokens
    }

    fn keys(&self, num_images: usize, _: Option<&[f32]>, rule: &MaskRule) -> Vec<f32> {
        const MASKED: f32 = 2.0;
        let tokens = rule.read.as_deref().unwrap_or_default();
        let num_masked = self.num_patches - rule.num_visible.unwrap_or(self.num_visible);
        let mut keys = Vec::with_capacity(num_images * self.num_patches);
        for (image, tokens) in tokens.chunks_exact(self.num_patches * self.dim).enumerate() {
            let mut rng = rule.rng(image);
            let clusters = k_means(tokens, self.dim, self.num_parts, &mut rng);
            let mut whole: Vec<usize> = (0..self.num_parts).collect();
            shuffle(&mut whole, &mut rng);
            let mut own: Vec<f32> = (0..self.num_patches).map(|_| uniform(&mut rng) as f32).collect();
            let sizes: Vec<usize> =
                (0..self.num_parts).map(|part| clusters.iter().filter(|of| **of == part).count()).collect();
            let masked = masked_of_parts(&sizes, &whole, num_masked, rule.progress);
            for (part, &num) in masked.iter().enumerate() {
                let mut patches: Vec<usize> = (0..self.num_patches).filter(|&patch| clusters[patch] == part).collect();
                patches.sort_by(|&a, &b| own[b].total_cmp(&own[a]));
                patches[..num].iter().for_each(|&patch| own[patch] += MASKED);
            }
            keys.extend(own);
        }
        keys
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{normals, tensor_rng};
    use crate::masking::order::order_by_keys;
    use crate::rng::{Purpose, keyed};

    fn rng(number: u64) -> ChaCha8Rng {
        keyed(3, Purpose::Mask, number, 0)
    }

    /// Sum of squared distances to the means of their clusters.
    fn spread(points: &[f32], dim: usize, clusters: &[usize], num: usize) -> f64 {
        let mut total = 0.0;
        for cluster in 0..num {
            let members: Vec<&[f32]> =
                points.chunks_exact(dim).zip(clusters).filter(|(_, of)| **of == cluster).map(|(row, _)| row).collect();
            for column in 0..dim {
                let values: Vec<f64> = members.iter().map(|row| f64::from(row[column])).collect();
                let mean = values.iter().sum::<f64>() / values.len().max(1) as f64;
                total += values.iter().map(|value| (value - mean).powi(2)).sum::<f64>();
            }
        }
        total
    }

    #[test]
    fn k_means_finds_clusters_that_are_apart_and_rests_where_no_point_should_move() {
        let dim = 5;
        let mut points = vec![0.0; 60 * dim];
        normals(&mut points, 0.1, &mut tensor_rng(1, "points"));
        for (i, point) in points.chunks_exact_mut(dim).enumerate() {
            point[i % 4] += 10.0;
        }
        for number in 0..20 {
            let clusters = k_means(&points, dim, 4, &mut rng(number));
            assert!((0..60).all(|i| clusters[i] == clusters[i % 4]), "{clusters:?}");
            assert!((0..4).all(|a| (0..a).all(|b| clusters[a] != clusters[b])));
        }
        // Without structure: no worse than clusters at random, and no single move makes it better.
        let mut points = vec![0.0; 12 * 2];
        normals(&mut points, 1.0, &mut tensor_rng(2, "points"));
        for number in 0..20 {
            let clusters = k_means(&points, 2, 3, &mut rng(number));
            let means: Vec<Vec<f64>> = (0..3)
                .map(|cluster| {
                    let members: Vec<usize> = (0..12).filter(|&i| clusters[i] == cluster).collect();
                    let mean = |c: usize| members.iter().map(|&i| f64::from(points[2 * i + c])).sum::<f64>();
                    (0..2).map(|c| mean(c) / members.len().max(1) as f64).collect()
                })
                .collect();
            for i in 0..12 {
                let at = |c: usize| distance(&points[2 * i..2 * i + 2], &means[c]);
                assert!((0..3).all(|c| at(clusters[i]) <= at(c) + 1e-9), "{number}: point {i}");
            }
            let random: Vec<usize> = (0..12).map(|i| i % 3).collect();
            assert!(spread(&points, 2, &clusters, 3) < spread(&points, 2, &random, 3));
        }
        // Equal points are one cluster, whatever is asked for.
        assert_eq!(k_means(&[1.0; 8], 2, 3, &mut rng(0)), [0; 4]);
    }

    #[test]
    fn counts_go_from_shares_of_all_parts_to_whole_parts() {
        let (sizes, whole) = ([8, 4, 4, 0], [2, 0, 3, 1]);
        assert_eq!(masked_of_parts(&sizes, &whole, 12, 0.0), [6, 3, 3, 0]);
        assert_eq!(masked_of_parts(&sizes, &whole, 12, 1.0), [8, 0, 4, 0]);
        // λ = 3/4: 6.5, 2.25 and 3.25, of which the largest remainder is rounded up.
        assert_eq!(masked_of_parts(&sizes, &whole, 12, 0.5), [7, 2, 3, 0]);
        for num_masked in 0..=16 {
            for step in 0..=20 {
                let masked = masked_of_parts(&sizes, &whole, num_masked, f64::from(step) / 20.0);
                assert_eq!(masked.iter().sum::<usize>(), num_masked);
                assert!(masked.iter().zip(sizes).all(|(masked, size)| *masked <= size), "{masked:?}");
            }
        }
    }

    #[test]
    fn at_the_end_whole_parts_are_masked_and_visible() {
        // Four parts of four patches each, by the first value of their tokens.
        let tokens: Vec<f32> = (0..3 * 16).flat_map(|i| [(i % 16 / 4) as f32, 0.0]).collect();
        let parts = Parts { num_patches: 16, dim: 2, num_visible: 8, num_parts: 4 };
        let rule = |progress| MaskRule { seed: 5, progress, read: Some(tokens.clone().into()), ..MaskRule::BY_SCORE };
        let masked = |progress| {
            let order = order_by_keys(&parts.keys(3, None, &rule(progress)), 16, 8);
            let of = |part: usize| (0..4).filter(|i| order.is_masked(4 * part + i)).count();
            (0..12).map(of).collect::<Vec<_>>()
        };
        assert!(masked(1.0).iter().all(|num| [0, 4].contains(num)), "{:?}", masked(1.0));
        assert_eq!(masked(0.0), [2; 12]);
        assert_eq!(masked(1.0), masked(1.0));
    }
}
