//! The best head in closed form: ridge regression of the targets on the features of one labelled batch, judged by its
//! squared error on another, with the exact derivative of that error for the features of both.
//!
//! It answers what one step of SGD on a head only hints at: how good the best linear head on these features is. With
//! A the finetune features less their mean μ, B the validation features less μ, Y targets (one column a class) with mean
//! ȳ: W = (AᵀA/n + λ·tr(AᵀA/n)/D·I)⁻¹ Aᵀ(Y − ȳ)/n, and L_v = mean over validation images of ‖BW + ȳ − Y_v‖². λ is
//! relative to the features' mean variance, so that larger features are no better.

use std::collections::VecDeque;
use std::sync::Arc;

use nalgebra::{Cholesky, DMatrix, Dyn};

use crate::error::ModelError;

/// Rows of features `[rows, dim]` and their targets `[rows, outputs]`.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Rows {
    /// Features, row-major.
    pub features: Vec<f64>,
    /// Targets, row-major.
    pub targets: Vec<f64>,
    /// Number of rows.
    pub num_rows: usize,
}

/// What the best head gives.
#[derive(Clone, Debug, PartialEq)]
pub struct Response {
    /// L_v, the mean squared error on the validation rows, summed over outputs.
    pub loss: f64,
    /// Share of the validation rows whose largest prediction is at their largest target.
    pub accuracy: f64,
    /// ∂L_v/∂ finetune features `[rows, dim]`: the path over the head.
    pub d_finetune: Vec<f64>,
    /// ∂L_v/∂ validation features `[rows, dim]`: the straight path.
    pub d_validation: Vec<f64>,
}

/// Features of earlier labelled batches, oldest first, for a head that rests on more images than one batch has. They are
/// as old as the θ that made them, and constants: only the newest batch's features have a derivative.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Bank {
    /// Of level 2.
    pub finetune: VecDeque<Arc<Rows>>,
    /// Of level 3.
    pub validation: VecDeque<Arc<Rows>>,
}

impl Bank {
    /// Adds a pair of batches and forgets the oldest beyond `num_batches`.
    pub fn add(&mut self, [finetune, validation]: [Arc<Rows>; 2], num_batches: usize) {
        for (batches, newest) in [(&mut self.finetune, finetune), (&mut self.validation, validation)] {
            batches.push_back(newest);
            while batches.len() > num_batches {
                batches.pop_front();
            }
        }
    }
}

/// As [`respond`], with the features of a bank before the newest. The derivatives are those of the newest rows, times
/// the number of all rows over theirs: all features would move with θ alike, so that a batch stands for all.
///
/// # Errors
/// As [`respond`].
pub fn respond_with_bank(
    bank: &Bank,
    [finetune, validation]: [&Rows; 2],
    dim: usize,
    outputs: usize,
    penalty: f64,
) -> Result<Response, ModelError> {
    let all = |earlier: &VecDeque<Arc<Rows>>, newest: &Rows| {
        let mut rows = Rows::default();
        for batch in earlier.iter().map(|batch| &**batch).chain([newest]) {
            rows.features.extend_from_slice(&batch.features);
            rows.targets.extend_from_slice(&batch.targets);
            rows.num_rows += batch.num_rows;
        }
        rows
    };
    let response = respond(&all(&bank.finetune, finetune), &all(&bank.validation, validation), dim, outputs, penalty)?;
    let newest = |all: Vec<f64>, rows: &Rows| {
        let factor = all.len() as f64 / rows.features.len() as f64;
        all[all.len() - rows.features.len()..].iter().map(|d| d * factor).collect()
    };
    Ok(Response {
        d_finetune: newest(response.d_finetune, finetune),
        d_validation: newest(response.d_validation, validation),
        ..response
    })
}

/// out `[inner_a, inner_b]` += aᵀ·b for a `[rows, inner_a]`, b `[rows, inner_b]`.
fn add_transposed_product(out: &mut [f64], a: &[f64], b: &[f64], inner_a: usize, inner_b: usize) {
    for (a, b) in a.chunks_exact(inner_a).zip(b.chunks_exact(inner_b)) {
        for (&a, out) in a.iter().zip(out.chunks_exact_mut(inner_b)) {
            out.iter_mut().zip(b).for_each(|(out, &b)| *out += a * b);
        }
    }
}

/// a·b `[rows, columns]` for a `[rows, inner]`, b `[inner, columns]`.
fn product(a: &[f64], b: &[f64], inner: usize, columns: usize) -> Vec<f64> {
    let mut out = vec![0.0; a.len() / inner * columns];
    for (a, out) in a.chunks_exact(inner).zip(out.chunks_exact_mut(columns)) {
        for (&a, b) in a.iter().zip(b.chunks_exact(columns)) {
            out.iter_mut().zip(b).for_each(|(out, &b)| *out += a * b);
        }
    }
    out
}

fn transposed(a: &[f64], columns: usize) -> Vec<f64> {
    let rows = a.len() / columns;
    (0..columns).flat_map(|column| (0..rows).map(move |row| a[row * columns + column])).collect()
}

fn column_means(a: &[f64], columns: usize) -> Vec<f64> {
    let mut means = vec![0.0; columns];
    a.chunks_exact(columns).for_each(|row| means.iter_mut().zip(row).for_each(|(mean, v)| *mean += v));
    let rows = (a.len() / columns) as f64;
    means.iter_mut().for_each(|mean| *mean /= rows);
    means
}

fn less(a: &[f64], means: &[f64]) -> Vec<f64> {
    a.chunks_exact(means.len()).flat_map(|row| row.iter().zip(means).map(|(v, mean)| v - mean)).collect()
}

/// m⁻¹·b `[dim, columns]`, row-major.
fn solve(m: &Cholesky<f64, Dyn>, b: &[f64], columns: usize) -> Vec<f64> {
    let mut x = DMatrix::from_row_slice(b.len() / columns, columns, b);
    m.solve_mut(&mut x);
    x.transpose().as_slice().to_vec()
}

/// The best head of `finetune`, judged on `validation`, see the [module](self). `penalty` is λ, above 0.
///
/// # Errors
/// When there are no rows, or features are not finite or all equal, so that there is no best head.
pub fn respond(
    finetune: &Rows,
    validation: &Rows,
    dim: usize,
    outputs: usize,
    penalty: f64,
) -> Result<Response, ModelError> {
    let refused = |problem: &str| ModelError::Targets { problem: format!("no closed-form head: {problem}") };
    let (n, m) = (finetune.features.len() / dim, validation.features.len() / dim);
    if n < 2 || m == 0 {
        return Err(refused("it needs two finetune images and one validation image"));
    }
    let mean = column_means(&finetune.features, dim);
    let (a, b) = (less(&finetune.features, &mean), less(&validation.features, &mean));
    let target_mean = column_means(&finetune.targets, outputs);
    let y = less(&finetune.targets, &target_mean);
    let inverse_n = 1.0 / n as f64;

    let mut gram = vec![0.0; dim * dim];
    add_transposed_product(&mut gram, &a, &a, dim, dim);
    gram.iter_mut().for_each(|v| *v *= inverse_n);
    let trace: f64 = (0..dim).map(|i| gram[i * dim + i]).sum();
    let ridge = penalty * trace / dim as f64;
    (0..dim).for_each(|i| gram[i * dim + i] += ridge);
    let mut moment = vec![0.0; dim * outputs];
    add_transposed_product(&mut moment, &a, &y, dim, outputs);
    moment.iter_mut().for_each(|v| *v *= inverse_n);
    let factors = Cholesky::new(DMatrix::from_row_slice(dim, dim, &gram));
    let factors = factors.ok_or_else(|| refused("the features are not finite, or all images have the same"))?;
    let w = solve(&factors, &moment, outputs);

    let predicted = product(&b, &w, dim, outputs);
    let (mut loss, mut num_right) = (0.0, 0usize);
    // 2·(prediction − target)/m.
    let mut residual = Vec::with_capacity(predicted.len());
    for (predicted, targets) in predicted.chunks_exact(outputs).zip(validation.targets.chunks_exact(outputs)) {
        let predicted: Vec<f64> = predicted.iter().zip(&target_mean).map(|(p, mean)| p + mean).collect();
        let largest = |x: &[f64]| (0..outputs).fold(0, |best, i| if x[i] > x[best] { i } else { best });
        num_right += usize::from(largest(&predicted) == largest(targets));
        for (p, t) in predicted.iter().zip(targets) {
            loss += (p - t).powi(2);
            residual.push(2.0 * (p - t) / m as f64);
        }
    }

    // Backward. W = M⁻¹C: dC = M⁻¹dW, dM = −dC·Wᵀ, and M reaches A by its Gram matrix and by its trace.
    let d_b = product(&residual, &transposed(&w, outputs), outputs, dim);
    let mut dw = vec![0.0; dim * outputs];
    add_transposed_product(&mut dw, &b, &residual, dim, outputs);
    let dc = solve(&factors, &dw, outputs);
    let mut dm = product(&dc, &transposed(&w, outputs), outputs, dim);
    dm.iter_mut().for_each(|v| *v = -*v);
    let d_trace: f64 = (0..dim).map(|i| dm[i * dim + i]).sum::<f64>() * penalty / dim as f64;
    let mut symmetric: Vec<f64> = (0..dim * dim).map(|i| dm[i] + dm[i % dim * dim + i / dim]).collect();
    (0..dim).for_each(|i| symmetric[i * dim + i] += 2.0 * d_trace);
    let mut d_a = product(&a, &symmetric, dim, dim);
    let through_moment = product(&y, &transposed(&dc, outputs), outputs, dim);
    d_a.iter_mut().zip(through_moment).for_each(|(d, moment)| *d = (*d + moment) * inverse_n);
    // Both sides lose the mean of the finetune features.
    let mut d_mean = vec![0.0; dim];
    for row in d_a.chunks_exact(dim).chain(d_b.chunks_exact(dim)) {
        d_mean.iter_mut().zip(row).for_each(|(d, v)| *d -= v * inverse_n);
    }
    for row in d_a.chunks_exact_mut(dim) {
        row.iter_mut().zip(&d_mean).for_each(|(d, mean)| *d += mean);
    }
    Ok(Response { loss: loss / m as f64, accuracy: num_right as f64 / m as f64, d_finetune: d_a, d_validation: d_b })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::init::{normal, tensor_rng};

    fn rows(name: &str, num: usize, dim: usize, outputs: usize) -> Rows {
        let mut rng = tensor_rng(4, name);
        let features: Vec<f64> = (0..num * dim).map(|_| 3.0 + normal(&mut rng)).collect();
        let class = |row: usize| usize::from(features[row * dim] + features[row * dim + 1] > 6.0) + row % (outputs - 1);
        let targets = (0..num).flat_map(|row| (0..outputs).map(move |k| (row, k)));
        let targets = targets.map(|(row, k)| f64::from(u8::from(class(row) == k))).collect();
        Rows { features, targets, num_rows: num }
    }

    /// The same head by another way: the normal equations of augmented data with a column of ones, which the penalty
    /// spares, by Gaussian elimination.
    fn loss_by_elimination(finetune: &Rows, validation: &Rows, dim: usize, outputs: usize, penalty: f64) -> f64 {
        let n = finetune.features.len() / dim;
        let size = dim + 1;
        let row = |rows: &Rows, i: usize| -> Vec<f64> {
            rows.features[i * dim..(i + 1) * dim].iter().copied().chain([1.0]).collect()
        };
        let mean: Vec<f64> = (0..dim).map(|j| (0..n).map(|i| row(finetune, i)[j]).sum::<f64>() / n as f64).collect();
        let variances = (0..dim).map(|j| (0..n).map(|i| (row(finetune, i)[j] - mean[j]).powi(2)).sum::<f64>());
        let ridge = penalty * variances.sum::<f64>() / n as f64 / dim as f64;
        let mut system = vec![vec![0.0; size + outputs]; size];
        for i in 0..n {
            let x = row(finetune, i);
            for a in 0..size {
                (0..size).for_each(|b| system[a][b] += x[a] * x[b] / n as f64);
                (0..outputs).for_each(|k| system[a][size + k] += x[a] * finetune.targets[i * outputs + k] / n as f64);
            }
        }
        (0..dim).for_each(|j| system[j][j] += ridge);
        for pivot in 0..size {
            let best = (pivot..size).max_by(|&a, &b| system[a][pivot].abs().total_cmp(&system[b][pivot].abs()));
            system.swap(pivot, best.unwrap());
            let base = system[pivot].clone();
            for (other, line) in system.iter_mut().enumerate().filter(|(other, _)| *other != pivot) {
                let factor = line[pivot] / base[pivot];
                line.iter_mut().zip(&base).for_each(|(v, base)| *v -= factor * base);
                assert!(line[pivot].abs() < 1e-9, "{other}");
            }
        }
        let m = validation.features.len() / dim;
        let error = |i: usize, k: usize| {
            let x = row(validation, i);
            let predicted: f64 = (0..size).map(|j| x[j] * system[j][size + k] / system[j][j]).sum();
            (predicted - validation.targets[i * outputs + k]).powi(2)
        };
        (0..m).flat_map(|i| (0..outputs).map(move |k| error(i, k))).sum::<f64>() / m as f64
    }

    #[test]
    fn the_head_is_the_best_one_and_its_derivative_exact() {
        let (dim, outputs, penalty) = (5, 3, 0.03);
        let (finetune, validation) = (rows("f", 11, dim, outputs), rows("v", 7, dim, outputs));
        let response = respond(&finetune, &validation, dim, outputs, penalty).unwrap();
        let expected = loss_by_elimination(&finetune, &validation, dim, outputs, penalty);
        assert!((response.loss - expected).abs() < 1e-12, "{} {expected}", response.loss);
        assert!(response.accuracy > 0.0 && response.accuracy <= 1.0);
        let loss = |f: &Rows, v: &Rows| loss_by_elimination(f, v, dim, outputs, penalty);
        let step = 1e-5;
        let moved = |rows: &Rows, i: usize, step: f64| {
            let mut rows = rows.clone();
            rows.features[i] += step;
            rows
        };
        let close = |got: f64, plus: f64, minus: f64, name: &str| {
            let expected = (plus - minus) / (2.0 * step);
            assert!((got - expected).abs() < 1e-9, "{name}: {got} {expected}");
        };
        for i in 0..finetune.features.len() {
            let at = |step: f64| loss(&moved(&finetune, i, step), &validation);
            close(response.d_finetune[i], at(step), at(-step), "finetune");
        }
        for i in 0..validation.features.len() {
            let at = |step: f64| loss(&finetune, &moved(&validation, i, step));
            close(response.d_validation[i], at(step), at(-step), "validation");
        }
    }

    #[test]
    fn a_bank_counts_in_the_head_and_the_newest_batch_stands_for_all() {
        let (dim, outputs, penalty) = (4, 3, 0.05);
        let [f0, f1, v0, v1] = ["f0", "f1", "v0", "v1"].map(|name| rows(name, 6, dim, outputs));
        let mut bank = Bank::default();
        for (f, v) in [(&v1, &f1), (&f0, &v0)] {
            bank.add([Arc::new(f.clone()), Arc::new(v.clone())], 1);
        }
        assert_eq!((bank.finetune.len(), &*bank.finetune[0]), (1, &f0), "the oldest is forgotten");
        let banked = respond_with_bank(&bank, [&f1, &v1], dim, outputs, penalty).unwrap();
        let join = |a: &Rows, b: &Rows| Rows {
            features: [&a.features[..], &b.features].concat(),
            targets: [&a.targets[..], &b.targets].concat(),
            num_rows: a.num_rows + b.num_rows,
        };
        let whole = respond(&join(&f0, &f1), &join(&v0, &v1), dim, outputs, penalty).unwrap();
        assert_eq!(banked.loss, whole.loss);
        let twice: Vec<f64> = whole.d_finetune[6 * dim..].iter().map(|d| 2.0 * d).collect();
        assert_eq!(banked.d_finetune, twice);
        let empty = respond_with_bank(&Bank::default(), [&f1, &v1], dim, outputs, penalty).unwrap();
        assert_eq!(empty, respond(&f1, &v1, dim, outputs, penalty).unwrap());
    }

    #[test]
    fn larger_features_are_no_better_and_equal_ones_are_refused() {
        let (finetune, validation) = (rows("f", 9, 4, 2), rows("v", 5, 4, 2));
        let scaled = |rows: &Rows| Rows { features: rows.features.iter().map(|v| 7.0 * v).collect(), ..rows.clone() };
        let [one, seven] = [
            respond(&finetune, &validation, 4, 2, 0.1).unwrap(),
            respond(&scaled(&finetune), &scaled(&validation), 4, 2, 0.1).unwrap(),
        ];
        assert!((one.loss - seven.loss).abs() < 1e-12);
        let equal = Rows { features: vec![1.0; 36], ..finetune.clone() };
        let error = respond(&equal, &validation, 4, 2, 0.1).unwrap_err().to_string();
        assert!(error.contains("no closed-form head"), "{error}");
        let not_finite = Rows { features: vec![f64::NAN; 36], ..finetune };
        assert!(respond(&not_finite, &validation, 4, 2, 0.1).is_err());
    }
}
