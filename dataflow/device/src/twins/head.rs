//! Heads of tasks: layer norm and cross entropy.

/// normed and scale, as [`Stream::head_norm`](crate::Stream::head_norm) keeps them, of rows that are `width` wide.
pub(crate) fn normed(z: &[f64], width: usize) -> [Vec<f64>; 2] {
    let (mut normed, mut scales) = (Vec::new(), Vec::new());
    for row in z.chunks_exact(width) {
        let mean = row.iter().sum::<f64>() / width as f64;
        let variance = row.iter().map(|v| (v - mean).powi(2)).sum::<f64>() / width as f64;
        let scale = 1.0 / (variance + f64::from(1e-6f32)).sqrt();
        normed.extend(row.iter().map(|v| (v - mean) * scale));
        scales.push(scale);
    }
    [normed, scales]
}

/// Losses, whether the first largest is the label's, and cotangents of the logits, of rows of `classes`.
pub(crate) fn cross_entropy(logits: &[f64], labels: &[u32], classes: usize, divisor: f64) -> [Vec<f64>; 3] {
    let [mut losses, mut right, mut cotangents] = [const { Vec::new() }; 3];
    for (row, &label) in logits.chunks_exact(classes).zip(labels) {
        let total: f64 = row.iter().map(|logit| logit.exp()).sum();
        losses.push(total.ln() - row[label as usize]);
        let best = (0..classes).fold(0, |best, i| if row[i] > row[best] { i } else { best });
        right.push(f64::from(u8::from(best == label as usize)));
        let one_hot = |i: usize| f64::from(u8::from(i == label as usize));
        cotangents.extend((0..classes).map(|i| (row[i].exp() / total - one_hot(i)) / divisor));
    }
    [losses, right, cotangents]
}
