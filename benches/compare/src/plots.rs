//! The plots: points on two logarithmic axes.

use std::path::Path;

use plotters::element::DashedPathElement;
use plotters::prelude::*;

use crate::report::{Axis, Plot, Series};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SIZE: (u32, u32) = (1080, 600);
/// The legend has the rest.
const CHART_WIDTH: i32 = 790;
const LEGEND_TOP: i32 = 52;
const LEGEND_STEP: i32 = 22;

/// What this is about stands out.
const OURS: [RGBColor; 2] = [RGBColor(213, 60, 0), RGBColor(0, 90, 181)];
/// The physical floor, of which there may be several: told apart by their dashes.
const FLOOR: RGBColor = RGBColor(30, 30, 30);
const DASHES: [u32; 3] = [7, 2, 16];
const DASH_GAP: u32 = 4;
/// The others. All of them told apart with red-green blindness, too, as far as a dozen can be.
const OTHERS: [RGBColor; 9] = [
    RGBColor(0, 158, 115),
    RGBColor(230, 159, 0),
    RGBColor(204, 121, 167),
    RGBColor(86, 180, 233),
    RGBColor(130, 80, 180),
    RGBColor(150, 110, 60),
    RGBColor(110, 150, 0),
    RGBColor(150, 150, 150),
    RGBColor(0, 110, 110),
];

/// How a series is drawn.
#[derive(Clone, Copy, Debug)]
enum Pen {
    Ours(RGBColor),
    Floor(u32),
    Other(RGBColor),
}

/// A pen for each series.
fn pens(series: &[Series]) -> Vec<Pen> {
    let (mut ours, mut others, mut dashes) =
        (OURS.iter().cycle(), OTHERS.iter().cycle(), DASHES.iter().cycle());
    let pen = |series: &Series| match series.name.as_str() {
        name if name.starts_with("forkring") => Pen::Ours(*ours.next().expect("a cycle")),
        name if name.starts_with("raw") || name.contains("memcpy") => {
            Pen::Floor(*dashes.next().expect("a cycle"))
        }
        _ => Pen::Other(*others.next().expect("a cycle")),
    };
    series.iter().map(pen).collect()
}

impl Pen {
    fn style(self) -> ShapeStyle {
        match self {
            Self::Ours(colour) => colour.stroke_width(4),
            Self::Floor(_) => FLOOR.stroke_width(2),
            Self::Other(colour) => colour.stroke_width(2),
        }
    }
}

/// Writes the plot of a row into `dir`: on white, so that it can be read in a dark page, too. `where_` is what it was
/// measured on.
pub(crate) fn write(dir: &Path, title: &str, where_: &str, plot: &Plot) -> Result<()> {
    let path = dir.join(&plot.file);
    let area = SVGBackend::new(&path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let (left, right) = area.split_horizontally(CHART_WIDTH);
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let xs = range(points().map(|&(x, _)| plot.x.place(x)));
    let ys = range(points().map(|&(_, y)| y));
    let mut chart = ChartBuilder::on(&left)
        .caption(title, ("sans-serif", 20))
        .margin(12)
        .margin_right(36)
        .x_label_area_size(50)
        .y_label_area_size(74)
        .build_cartesian_2d(
            (xs.0..xs.1).log_scale().base(plot.x.base()),
            (ys.0 * 0.8..ys.1 * 1.25).log_scale(),
        )?;
    chart
        .configure_mesh()
        .x_desc(&plot.x_label)
        .y_desc(&plot.y_label)
        .label_style(("sans-serif", 14))
        .axis_desc_style(("sans-serif", 15))
        .x_label_formatter(&|&x| plot.x.text(x))
        .y_label_formatter(&|&y| tick(y))
        .light_line_style(TRANSPARENT)
        .draw()?;
    // From top to bottom as the lines end, and ours drawn last, over the others.
    let end = |series: &Series| series.points.last().map_or(0.0, |&(_, y)| y);
    let mut series: Vec<(&Series, Pen)> = plot.series.iter().zip(pens(&plot.series)).collect();
    series.sort_by(|(a, _), (b, _)| end(b).total_cmp(&end(a)));
    for ((series, pen), y) in series.iter().zip((LEGEND_TOP..).step_by(LEGEND_STEP as usize)) {
        let line = [(0, y + 7), (24, y + 7)];
        match pen {
            Pen::Floor(dash) => right.draw(&DashedPathElement::new(line, *dash, DASH_GAP, pen.style()))?,
            Pen::Ours(_) | Pen::Other(_) => right.draw(&PathElement::new(line, pen.style()))?,
        }
        right.draw(&Text::new(series.name.as_str(), (32, y), ("sans-serif", 14)))?;
    }
    let bottom = SIZE.1 as i32 - 28;
    right.draw(&Text::new(where_, (0, bottom), ("sans-serif", 12).into_font().color(&FLOOR)))?;
    series.sort_by_key(|(_, pen)| matches!(pen, Pen::Ours(_)));
    for (series, pen) in series {
        let points: Vec<_> = series.points.iter().map(|&(x, y)| (plot.x.place(x), y)).collect();
        match pen {
            Pen::Floor(dash) => {
                chart.draw_series(DashedLineSeries::new(points, dash, DASH_GAP, pen.style()))?
            }
            Pen::Ours(_) | Pen::Other(_) => {
                chart.draw_series(LineSeries::new(points, pen.style()).point_size(3))?
            }
        };
    }
    area.present()?;
    Ok(())
}

/// What stands beside a tick: no more digits than it takes.
fn tick(x: f64) -> String {
    let text = format!("{x:.3}");
    text.trim_end_matches('0').trim_end_matches('.').to_owned()
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
            Self::Bytes if place >= 1_048_576.0 => format!("{} MiB", tick(place / 1_048_576.0)),
            Self::Bytes if place >= 1024.0 => format!("{} KiB", tick(place / 1024.0)),
            Self::Bytes => format!("{} B", tick(place)),
            Self::Count => tick(place),
        }
    }
}
