//! Agreement of masks and scores with objects whose patches are known.

/// Agreement of masks and scores with objects whose patches are known.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct ObjectStatistics {
    /// Area under the ROC curve of the scores as a detector of an image's object patches, mean of the images: 1 if each
    /// object patch has a higher score than each other, 0.5 by chance, 0 if a lower one. None without scores, or if no
    /// image has patches of both kinds.
    pub(crate) score_auc: Option<f64>,
    /// Share of the object patches that are masked; none if there are none.
    pub(crate) object_share: Option<f64>,
    /// Share of the other patches that are masked; none if there are none.
    pub(crate) background_share: Option<f64>,
}

impl ObjectStatistics {
    /// Of images of `num_patches` patches each: `objects`, `masked` and `scores` [images, num_patches].
    pub(crate) fn of(objects: &[bool], masked: &[bool], scores: Option<&[f32]>, num_patches: usize) -> Self {
        let share_masked = |of_object: bool| {
            let of_kind = || objects.iter().zip(masked).filter(|(object, _)| **object == of_object);
            let num = of_kind().count();
            (num > 0).then(|| of_kind().filter(|(_, masked)| **masked).count() as f64 / num as f64)
        };
        let aucs = scores.into_iter().flat_map(|scores| {
            let images = objects.chunks_exact(num_patches).zip(scores.chunks_exact(num_patches));
            images.filter_map(|(objects, scores)| area_under_roc(objects, scores))
        });
        let aucs: Vec<f64> = aucs.collect();
        Self {
            score_auc: (!aucs.is_empty()).then(|| aucs.iter().sum::<f64>() / aucs.len() as f64),
            object_share: share_masked(true),
            background_share: share_masked(false),
        }
    }
}

/// Share of the pairs of a hit and a miss in which the hit has the higher score; equal scores count half. None unless
/// there are both.
fn area_under_roc(hits: &[bool], scores: &[f32]) -> Option<f64> {
    let of_kind = |kind: bool| hits.iter().zip(scores).filter(move |(hit, _)| **hit == kind).map(|(_, score)| *score);
    let (num_hits, num_misses) = (of_kind(true).count(), of_kind(false).count());
    let wins = of_kind(true).flat_map(|hit| {
        of_kind(false).map(move |miss| f64::from(u8::from(hit > miss)) + 0.5 * f64::from(u8::from(hit == miss)))
    });
    (num_hits > 0 && num_misses > 0).then(|| wins.sum::<f64>() / (num_hits * num_misses) as f64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn known_scores_find_the_object_or_not() {
        let objects = [true, true, false, false, false, true, false, false];
        let masked = [true, true, true, false, false, false, true, false];
        let of = |scores: &[f32]| ObjectStatistics::of(&objects, &masked, Some(scores), 4);
        // First image: all 4 pairs won; second: all 3 lost.
        let found = of(&[0.9, 0.8, 0.1, 0.2, 0.7, 0.1, 0.6, 0.5]);
        assert_eq!(found.score_auc, Some(0.5));
        assert_eq!((found.object_share, found.background_share), (Some(2.0 / 3.0), Some(2.0 / 5.0)));
        assert_eq!(of(&[0.9, 0.8, 0.1, 0.2, 0.1, 0.7, 0.6, 0.5]).score_auc, Some(1.0));
        assert_eq!(of(&[0.3; 8]).score_auc, Some(0.5), "equal scores say nothing");
        // 3 of 4 pairs, and one of 3 with one draw.
        let third = 1.5 / 3.0;
        assert_eq!(of(&[0.9, 0.5, 0.6, 0.1, 0.2, 0.5, 0.5, 0.9]).score_auc, Some((0.75 + third) / 2.0));
        assert_eq!(ObjectStatistics::of(&objects, &masked, None, 4).score_auc, None);
        let without = ObjectStatistics::of(&[false; 4], &masked[..4], Some(&[0.5; 4]), 4);
        assert_eq!((without.score_auc, without.object_share), (None, None));
        assert_eq!(without.background_share, Some(0.75));
    }
}
