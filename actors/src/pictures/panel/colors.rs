//! The colours of the heat map.

use image::Rgb;

/// From dark to light, with lightness rising evenly, so that it reads in print and by the colour blind.
const ANCHORS: [[f32; 3]; 6] = [
    [15.0, 12.0, 60.0],
    [70.0, 25.0, 115.0],
    [150.0, 45.0, 105.0],
    [220.0, 85.0, 70.0],
    [248.0, 155.0, 55.0],
    [250.0, 240.0, 160.0],
];
/// What is not a number, which no scale has.
const NOT_A_NUMBER: Rgb<u8> = Rgb([0, 200, 255]);

/// The colour of `value`, 0 to 1; beyond, that of the nearer end.
pub(super) fn heat(value: f32) -> Rgb<u8> {
    if value.is_nan() {
        return NOT_A_NUMBER;
    }
    let place = value.clamp(0.0, 1.0) * (ANCHORS.len() - 1) as f32;
    let below = (place as usize).min(ANCHORS.len() - 2);
    let share = place - below as f32;
    let channel = |c: usize| (ANCHORS[below][c] * (1.0 - share) + ANCHORS[below + 1][c] * share).round() as u8;
    Rgb([channel(0), channel(1), channel(2)])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lightness_rises_with_the_value() {
        let lightness = |value: u16| {
            let Rgb([r, g, b]) = heat(f32::from(value) / 100.0);
            0.21 * f32::from(r) + 0.72 * f32::from(g) + 0.07 * f32::from(b)
        };
        assert!((0..100).all(|value| lightness(value) < lightness(value + 1) + 0.5));
        assert!(lightness(100) > lightness(0) + 150.0);
        assert_eq!(heat(7.0), heat(1.0));
        assert_eq!(heat(f32::NAN), NOT_A_NUMBER);
    }
}
