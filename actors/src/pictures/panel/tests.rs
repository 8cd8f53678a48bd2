use super::*;

const SHAPE: PanelShape = PanelShape { image: 32, patch: 8, channels: 3 };

/// A red image whose reconstruction is blue; the patches of the upper half are masked.
fn row() -> PanelRow {
    PanelRow {
        title: "sample 7, ankle boot".to_owned(),
        image: [200, 10, 10].repeat(32 * 32),
        scores: Some((0..16).map(|patch| 1.0 - patch as f32 / 15.0).collect()),
        object: None,
        mask: (0..16).map(|patch| patch < 8).collect(),
        reconstruction: [10, 10, 200].repeat(32 * 32),
    }
}

/// The middle of patch (`y`, `x`) in a column of the panel's first row.
fn at(panel: &RgbImage, column: usize, y: usize, x: usize) -> [u8; 3] {
    let zoom = CELL_SIDE / 32;
    let left = GAP + column * (32 * zoom + GAP) + (x * 8 + 4) * zoom;
    let top = GAP + 2 * LINE + (y * 8 + 4) * zoom;
    panel.get_pixel(left as u32, top as u32).0
}

#[test]
fn masked_patches_are_reconstructed_and_visible_ones_are_the_images() {
    let panel = compose(SHAPE, &[row()], &[]).expect("the arrays fit");
    let (red, blue) = ([200, 10, 10], [10, 10, 200]);
    for x in 0..4 {
        for y in 0..4 {
            assert_eq!(at(&panel, 0, y, x), red);
            let is_masked = y < 2;
            assert_eq!(at(&panel, 3, y, x), if is_masked { blue } else { red }, "{y} {x}");
            let seen = at(&panel, 2, y, x);
            if is_masked {
                assert!(STRIPES.contains(&Rgb(seen)), "{seen:?}");
            } else {
                assert_eq!(seen, red);
            }
        }
    }
    assert_eq!(Rgb(at(&panel, 1, 0, 0)), heat(1.0), "the highest score");
    assert_eq!(Rgb(at(&panel, 1, 3, 3)), heat(0.0), "the lowest score");
}

#[test]
fn grey_images_are_grey() {
    let shape = PanelShape { image: 28, patch: 4, channels: 1 };
    let row = PanelRow {
        title: String::new(),
        image: vec![77; 28 * 28],
        scores: Some(vec![0.5; 49]),
        object: None,
        mask: vec![false; 49],
        reconstruction: vec![0; 28 * 28],
    };
    let panel = compose(shape, &[row.clone(), row], &[]).expect("the arrays fit");
    assert_eq!(panel.get_pixel((GAP + 3) as u32, (GAP + 2 * LINE + 3) as u32).0, [77; 3]);
}

#[test]
fn arrays_of_wrong_length_are_named() {
    let mut wrong = row();
    wrong.scores.as_mut().expect("scores").pop();
    let error = compose(SHAPE, &[row(), wrong], &[]).expect_err("15 scores for 16 patches");
    assert_eq!(error.to_string(), "row 1: scores must have 16 values, not 15");
    assert_eq!(compose(SHAPE, &[], &[]), Err(PanelError::Empty));
    let odd = PanelShape { patch: 5, ..SHAPE };
    assert!(matches!(compose(odd, &[row()], &[]), Err(PanelError::Shape { .. })));
}

#[test]
fn scores_that_are_no_numbers_do_not_spoil_the_scale() {
    let mut odd = row();
    let scores = odd.scores.as_mut().expect("scores");
    (scores[0], scores[1]) = (f32::NAN, f32::INFINITY);
    let panel = compose(SHAPE, &[odd], &[]).expect("the arrays fit");
    assert_eq!(Rgb(at(&panel, 1, 0, 0)), heat(f32::NAN));
    assert_eq!(Rgb(at(&panel, 1, 0, 1)), heat(1.0));
    assert_eq!(Rgb(at(&panel, 1, 3, 3)), heat(0.0));
}

#[test]
fn without_scores_there_is_no_column_of_them_and_no_legend() {
    let notes = ["random masks".to_owned()];
    let with = compose(SHAPE, &[row()], &notes).expect("the arrays fit");
    let without = compose(SHAPE, &[PanelRow { scores: None, ..row() }], &notes).expect("the arrays fit");
    assert_eq!(with.height() - without.height(), LINE as u32);
    assert_eq!(with.width() - without.width(), (CELL_SIDE + GAP) as u32);
    assert!(STRIPES.contains(&Rgb(at(&without, 1, 0, 0))), "the second column shows what is visible");
    assert_eq!(at(&without, 2, 0, 0), [10, 10, 200], "the third is the reconstruction");
}

#[test]
fn a_known_object_is_outlined_over_the_scores() {
    // The four patches in the middle.
    let object = (0..16).map(|patch| matches!(patch, 5 | 6 | 9 | 10)).collect();
    let panel = compose(SHAPE, &[PanelRow { object: Some(object), ..row() }], &[]).expect("the arrays fit");
    let side = 8 * CELL_SIDE / 32;
    let pixel = |column: usize, x: usize, y: usize| {
        *panel.get_pixel((GAP + column * (CELL_SIDE + GAP) + x) as u32, (GAP + 2 * LINE + y) as u32)
    };
    for at in [side, 2 * side, 3 * side - 1] {
        for (x, y) in [(side, at), (3 * side - 1, at), (at, side), (at, 3 * side - 1)] {
            assert_eq!(pixel(1, x, y), OUTLINE, "{x} {y}");
        }
    }
    for (x, y) in [(side - 1, side), (2 * side, 2 * side), (3 * side, 2 * side)] {
        assert_ne!(pixel(1, x, y), OUTLINE, "{x} {y}");
    }
    assert_eq!(pixel(0, side, side), Rgb([200, 10, 10]), "the image is left as it is");
}

#[test]
fn notes_widen_a_panel_that_is_too_narrow_for_them() {
    let note = "x".repeat(400);
    let panel = compose(SHAPE, &[row()], std::slice::from_ref(&note)).expect("the arrays fit");
    assert!(panel.width() as usize >= font::width(&note) + 2 * GAP);
}
