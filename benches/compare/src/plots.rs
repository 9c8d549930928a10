//! The plots: points on two logarithmic axes.

use std::path::Path;

use plotters::prelude::*;

use crate::report::{Axis, Plot, short};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SIZE: (u32, u32) = (1080, 560);
/// The legend has the rest.
const CHART_WIDTH: i32 = 820;

/// Told apart with red-green blindness, too, as far as ten can be.
const COLOURS: [RGBColor; 10] = [
    RGBColor(90, 90, 90),
    RGBColor(213, 60, 0),
    RGBColor(0, 114, 178),
    RGBColor(0, 158, 115),
    RGBColor(204, 121, 167),
    RGBColor(230, 159, 0),
    RGBColor(86, 180, 233),
    RGBColor(130, 80, 180),
    RGBColor(150, 110, 60),
    RGBColor(0, 60, 90),
];

/// Writes the plot of a row into `dir`.
pub(crate) fn write(dir: &Path, title: &str, plot: &Plot) -> Result<()> {
    let path = dir.join(&plot.file);
    let area = SVGBackend::new(&path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(CHART_WIDTH);
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let xs = range(points().map(|&(x, _)| plot.x.place(x)));
    let ys = range(points().map(|&(_, y)| y));
    let mut chart = ChartBuilder::on(&left)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .margin_right(32)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d(
            (xs.0..xs.1).log_scale().base(plot.x.base()),
            (ys.0 * 0.8..ys.1 * 1.25).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(&plot.x_label)
        .y_desc(&plot.y_label)
        .x_label_formatter(&|&x| plot.x.text(x))
        .y_label_formatter(&|&y| short(y))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for ((at, series), y) in plot.series.iter().enumerate().zip((48..).step_by(20)) {
        // What this is about stands out.
        let width = if series.name.starts_with("forkring") { 3 } else { 1 };
        let style = COLOURS[at % COLOURS.len()].stroke_width(width);
        let points: Vec<_> = series.points.iter().map(|&(x, y)| (plot.x.place(x), y)).collect();
        chart.draw_series(LineSeries::new(points, style).point_size(2))?;
        right.draw(&PathElement::new([(0, y + 6), (18, y + 6)], style))?;
        right.draw(&Text::new(series.name.as_str(), (24, y), ("sans-serif", 14)))?;
    }
    area.present()?;
    Ok(())
}

fn range(values: impl Iterator<Item = f64>) -> (f64, f64) {
    // A logarithmic axis begins above zero and is longer than nothing.
    let (low, high) =
        values.fold((f64::INFINITY, 0.0_f64), |(low, high), value| (low.min(value), high.max(value)));
    (low.max(1e-6), high.max(low * 1.01).max(2e-6))
}

impl Axis {
    /// Where a value lies on the logarithmic axis.
    fn place(self, x: f64) -> f64 {
        match self {
            Self::Nines => 1.0 / (1.0 - x),
            Self::Count | Self::Bytes => x,
        }
    }

    /// What one tick has more than the one before.
    fn base(self) -> f64 {
        match self {
            Self::Bytes => 4.0,
            Self::Count | Self::Nines => 10.0,
        }
    }

    fn text(self, place: f64) -> String {
        match self {
            Self::Nines => {
                let percent = format!("{:.2}", 100.0 - 100.0 / place);
                format!("{} %", percent.trim_end_matches('0').trim_end_matches('.'))
            }
            Self::Bytes if place >= 1_048_576.0 => format!("{} MiB", short(place / 1_048_576.0)),
            Self::Bytes if place >= 1024.0 => format!("{} KiB", short(place / 1024.0)),
            Self::Bytes => format!("{} B", short(place)),
            Self::Count => short(place),
        }
    }
}
