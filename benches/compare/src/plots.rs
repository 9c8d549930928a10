//! The plots: points on two logarithmic axes.

use std::path::Path;

use plotters::prelude::*;
use plotters::style::{Palette, Palette99};

use crate::report::{Axis, Plot, short};

type Result<T> = std::result::Result<T, Box<dyn std::error::Error>>;

const SIZE: (u32, u32) = (960, 600);

/// Writes the plot of a row into `dir`.
pub(crate) fn write(dir: &Path, title: &str, plot: &Plot) -> Result<()> {
    let path = dir.join(&plot.file);
    let area = SVGBackend::new(&path, SIZE).into_drawing_area();
    area.fill(&WHITE)?;
    let points = || plot.series.iter().flat_map(|series| &series.points);
    let xs = range(points().map(|&(x, _)| plot.x.place(x)));
    let ys = range(points().map(|&(_, y)| y));
    let mut chart = ChartBuilder::on(&area)
        .caption(title, ("sans-serif", 18))
        .margin(12)
        .x_label_area_size(42)
        .y_label_area_size(64)
        .build_cartesian_2d((xs.0..xs.1).log_scale(), (ys.0 * 0.8..ys.1 * 1.25).log_scale())?;
    let x_text = |x: &f64| plot.x.text(*x);
    chart
        .configure_mesh()
        .x_desc(&plot.x_label)
        .y_desc(&plot.y_label)
        .x_label_formatter(&x_text)
        .y_label_formatter(&|y| short(*y))
        .light_line_style(TRANSPARENT)
        .draw()?;
    for (at, series) in plot.series.iter().enumerate() {
        let colour = Palette99::pick(at).to_rgba();
        // What this is about stands out.
        let width = if series.name.starts_with("forkring") { 3 } else { 1 };
        let points: Vec<_> = series.points.iter().map(|&(x, y)| (plot.x.place(x), y)).collect();
        let line = LineSeries::new(points, colour.stroke_width(width)).point_size(2);
        chart
            .draw_series(line)?
            .label(&series.name)
            .legend(move |(x, y)| PathElement::new([(x, y), (x + 18, y)], colour.stroke_width(width)));
    }
    chart
        .configure_series_labels()
        .position(SeriesLabelPosition::UpperLeft)
        .background_style(WHITE.mix(0.85))
        .border_style(BLACK.mix(0.2))
        .draw()?;
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
