//! Distance over the earth's surface.

/// The mean radius (2a + b) / 3 of the GRS 80 ellipsoid: H. Moritz, "Geodetic Reference System 1980", Journal of
/// Geodesy 74 (2000), pp. 128–133.
pub(crate) const EARTH_RADIUS_KM: f64 = 6371.0088;

/// A place, with what every distance from it needs.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Place {
    latitude: f64,
    longitude: f64,
    cos_latitude: f64,
}

impl Place {
    /// From degrees, north and east positive.
    pub(crate) fn new(latitude: f64, longitude: f64) -> Place {
        let latitude = latitude.to_radians();
        Place { latitude, longitude: longitude.to_radians(), cos_latitude: latitude.cos() }
    }

    /// The great-circle distance by the haversine formula: R. W. Sinnott, "Virtues of the Haversine", Sky and
    /// Telescope 68 (1984), p. 159. It takes the earth for a sphere, which is right to about 0.5 %.
    pub(crate) fn distance_km(&self, other: &Place) -> f64 {
        let haversine = |angle: f64| (angle / 2.0).sin().powi(2);
        let across = self.cos_latitude * other.cos_latitude * haversine(other.longitude - self.longitude);
        let chord = haversine(other.latitude - self.latitude) + across;
        // Rounding can carry the value of two opposite places past 1, where the arc sine ends.
        2.0 * EARTH_RADIUS_KM * chord.sqrt().min(1.0).asin()
    }
}

#[cfg(test)]
mod tests {
    use std::f64::consts::PI;

    use super::*;

    fn assert_km(from: Place, to: Place, expected: f64) {
        let km = from.distance_km(&to);
        assert!((km - expected).abs() < 1e-6, "{km} instead of {expected}");
        assert_eq!(km, to.distance_km(&from));
    }

    #[test]
    fn arcs_of_known_length() {
        let origin = Place::new(0.0, 0.0);
        assert_km(origin, origin, 0.0);
        assert_km(origin, Place::new(0.0, 90.0), EARTH_RADIUS_KM * PI / 2.0);
        assert_km(origin, Place::new(-45.0, 0.0), EARTH_RADIUS_KM * PI / 4.0);
        assert_km(Place::new(90.0, 13.0), Place::new(-90.0, 99.0), EARTH_RADIUS_KM * PI);
        assert_km(Place::new(0.0, 179.0), Place::new(0.0, -179.0), EARTH_RADIUS_KM * PI / 90.0);
    }

    /// The published example of Nashville and Los Angeles (rosettacode.org), which uses 6372.8 km for the radius.
    #[test]
    fn a_published_distance() {
        let km = Place::new(36.12, -86.67).distance_km(&Place::new(33.94, -118.40));
        assert!((km * 6372.8 / EARTH_RADIUS_KM - 2887.259950607111).abs() < 1e-6, "{km}");
    }
}
