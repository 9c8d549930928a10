//! What is done to each line, whoever does it.

use crate::flight::Flight;
use crate::geo::Place;
use crate::json::Object;
use crate::tables::{Airport, Plane, Tables};

/// The longest line that is looked at. No valid one comes near it, as every field is bounded.
pub(crate) const LINE_BYTES_MAX: usize = 4096;

/// Room for a typical record, so that a fresh buffer is allocated once.
pub(crate) const RECORD_BYTES: usize = 640;

const KM_PER_MILE: f64 = 1.609_344;

/// Appends the record made of `line`, with its newline, to `out`.
///
/// The error is the reason why the line does not parse, and nothing is appended then. What the tables do not know is
/// `null` in the record, and no error.
pub(crate) fn enrich_line(tables: &Tables, line: &str, out: &mut String) -> Result<(), String> {
    if line.len() > LINE_BYTES_MAX {
        return Err(format!("the line is longer than {LINE_BYTES_MAX} bytes"));
    }
    let mut unquoted = None;
    let flight = Flight::parse(line, &mut unquoted)?;
    write_record(tables, &flight, out);
    Ok(())
}

fn write_record(tables: &Tables, flight: &Flight, out: &mut String) {
    let airline = tables.airline(flight.carrier);
    let plane = tables.plane(flight.tailnum);
    let origin = tables.airport(flight.origin);
    let dest = tables.airport(flight.dest);
    let great_circle_km = great_circle_km(origin, dest);

    let mut object = Object::begin(out);
    object.date("date", flight.date);
    object.plain("time_hour", flight.time_hour);
    object.clock("sched_dep_time", flight.sched_dep_time);
    object.clock("dep_time", flight.dep_time);
    object.int("dep_delay_min", flight.dep_delay);
    object.clock("sched_arr_time", flight.sched_arr_time);
    object.clock("arr_time", flight.arr_time);
    object.int("arr_delay_min", flight.arr_delay);
    object.code("carrier", flight.carrier);
    object.json("airline", airline.and_then(|airline| airline.name.as_deref()));
    object.int("flight", flight.flight);
    object.code("tailnum", flight.tailnum);
    object.json("manufacturer", plane.and_then(|plane| plane.manufacturer.as_deref()));
    object.json("model", plane.and_then(|plane| plane.model.as_deref()));
    object.int("seats", plane.and_then(|plane| plane.seats));
    object.int("aircraft_age_years", aircraft_age_years(flight, plane));
    object.code("origin", flight.origin);
    object.json("origin_name", origin.and_then(|airport| airport.name.as_deref()));
    object.code("dest", flight.dest);
    object.json("dest_name", dest.and_then(|airport| airport.name.as_deref()));
    object.int("distance_mi", flight.distance);
    object.tenths("great_circle_km", great_circle_km);
    object.int("air_time_min", flight.air_time);
    object.tenths("speed_kmh", speed_kmh(flight, great_circle_km));
    object.end();
    out.push('\n');
}

fn great_circle_km(origin: Option<&Airport>, dest: Option<&Airport>) -> Option<f64> {
    let place = |airport: Option<&Airport>| -> Option<Place> { airport?.place };
    Some(place(origin)?.distance_km(&place(dest)?))
}

/// Years between building and flying; an aircraft that flew before it was built has an unknown age.
fn aircraft_age_years(flight: &Flight, plane: Option<&Plane>) -> Option<i32> {
    let age = flight.date?.year.checked_sub(plane?.year_built?)?;
    (age >= 0).then_some(age)
}

/// The average speed on the great circle. Where an airport's place is unknown, the flight's own distance in miles
/// stands in, so that the speed is known wherever the time in the air is.
fn speed_kmh(flight: &Flight, great_circle_km: Option<f64>) -> Option<f64> {
    let published_km = || flight.distance.map(|miles| f64::from(miles) * KM_PER_MILE);
    let km = great_circle_km.or_else(published_km)?;
    let minutes = flight.air_time.filter(|&minutes| minutes > 0)?;
    Some(km * 60.0 / f64::from(minutes))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tables::tests::small;

    fn record(line: &str) -> serde_json::Value {
        let mut out = String::new();
        enrich_line(&small(), line, &mut out).unwrap();
        assert!(out.ends_with("}\n") && out.len() <= RECORD_BYTES);
        serde_json::from_str(&out).unwrap()
    }

    #[test]
    fn a_record_has_what_the_tables_know() {
        let record =
            record("2013,1,1,517,515,2,830,819,11,UA,1545,N14228,EWR,IAH,227,1400,5,15,2013-01-01T10:00:00Z");
        let expected = serde_json::json!({
            "date": "2013-01-01", "time_hour": "2013-01-01T10:00:00Z",
            "sched_dep_time": "05:15", "dep_time": "05:17", "dep_delay_min": 2,
            "sched_arr_time": "08:19", "arr_time": "08:30", "arr_delay_min": 11,
            "carrier": "UA", "airline": "United Air Lines Inc.", "flight": 1545,
            "tailnum": "N14228", "manufacturer": "BOEING", "model": "737-824", "seats": 149,
            "aircraft_age_years": 14,
            "origin": "EWR", "origin_name": "Newark Liberty Intl",
            "dest": "IAH", "dest_name": "George \"Bush\"\n",
            "distance_mi": 1400, "great_circle_km": record["great_circle_km"], "air_time_min": 227,
            "speed_kmh": record["speed_kmh"],
        });
        assert_eq!(record, expected);
        let km = record["great_circle_km"].as_f64().unwrap();
        let kmh = record["speed_kmh"].as_f64().unwrap();
        assert!((km - 1400.0 * KM_PER_MILE).abs() < 5.0, "{km}");
        assert!((kmh - km / 227.0 * 60.0).abs() < 0.1, "{kmh}");
    }

    #[test]
    fn what_is_missing_is_null() {
        let record =
            record("2013,1,1,NA,600,NA,NA,901,NA,XX,1545,NA,EWR,SJU,NA,1598,6,0,2013-01-01T11:00:00Z");
        for key in [
            "dep_time",
            "dep_delay_min",
            "arr_time",
            "arr_delay_min",
            "airline",
            "tailnum",
            "manufacturer",
            "model",
            "seats",
            "aircraft_age_years",
            "dest_name",
            "great_circle_km",
            "air_time_min",
            "speed_kmh",
        ] {
            assert!(record[key].is_null(), "{key}: {}", record[key]);
        }
        assert_eq!(record["dest"], "SJU");
        assert_eq!(record["carrier"], "XX");
    }

    #[test]
    fn speed_falls_back_on_the_published_distance() {
        let record = record("2013,1,1,1,2,0,3,4,0,UA,1,N14228,EWR,SJU,200,1000,6,0,2013-01-01T11:00:00Z");
        assert!(record["great_circle_km"].is_null());
        assert_eq!(record["speed_kmh"], 482.8);
    }

    #[test]
    fn age_is_never_negative() {
        let record = record("1998,1,1,1,2,0,3,4,0,UA,1,N14228,EWR,IAH,0,1000,6,0,1998-01-01T11:00:00Z");
        assert!(record["aircraft_age_years"].is_null());
        assert!(record["speed_kmh"].is_null());
    }

    #[test]
    fn a_reject_leaves_the_output_alone() {
        let mut out = String::from("before\n");
        assert!(enrich_line(&small(), "a,b", &mut out).is_err());
        let long = " ".repeat(LINE_BYTES_MAX + 1);
        let reason = enrich_line(&small(), &long, &mut out).unwrap_err();
        assert_eq!(reason, "the line is longer than 4096 bytes");
        assert_eq!(out, "before\n");
    }
}
