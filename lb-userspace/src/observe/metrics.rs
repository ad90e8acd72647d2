//! [`Status`] as metrics: one row for each family, from which the exposition and its reference page are made. Pure.
//!
//! The exposition is OpenMetrics 1.0, which Prometheus reads since 2.5. Names follow
//! <https://prometheus.io/docs/practices/naming/>: base units, `_total` for what only grows, labels of which there are as
//! many as the configuration has objects. The only number that follows pods, that of backends, has a bound of its own.

mod announce;
mod families;
mod reference;
#[cfg(test)]
mod tests;

use std::{fmt, net::SocketAddr, sync::Arc};

use prometheus_client::{
    collector::Collector,
    encoding::{DescriptorEncoder, MetricEncoder, NoLabelSet},
    metrics::MetricType,
    registry::{Registry, Unit},
};

pub use reference::reference;

use crate::status::{BackendStatus, MapStatus, ReasonStatus, ServiceStatus, Status};

/// What [`render`] writes.
pub const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Every family, in the order in which they are exposed.
fn all() -> impl Iterator<Item = &'static Family> {
    families::FAMILIES.iter().chain(announce::FAMILIES)
}

/// Metrics of one name, and where their samples come from.
struct Family {
    /// Without unit and suffix.
    name: &'static str,
    unit: Option<BaseUnit>,
    kind: Kind,
    help: &'static str,
    source: Source,
}

/// What a family has a sample of, and its value.
enum Source {
    Agent(fn(&View) -> u64),
    Map(fn(&MapStatus) -> Option<u64>),
    Reason(fn(&ReasonStatus) -> u64),
    Service(fn(&ServiceStatus) -> u64),
    Backend(fn(&BackendStatus) -> u64),
    /// With labels of its own; `series` says how many there are.
    Other {
        labels: &'static [&'static str],
        series: &'static str,
        samples: fn(&Status, &mut Samples) -> fmt::Result,
    },
}

impl Source {
    const fn labels(&self) -> &'static [&'static str] {
        match self {
            Self::Agent(_) => &[],
            Self::Map(_) => &["map"],
            Self::Reason(_) => &["reason"],
            Self::Service(_) => &["service", "vip", "protocol", "port"],
            Self::Backend(_) => &["service", "vip", "protocol", "port", "backend"],
            Self::Other { labels, .. } => labels,
        }
    }

    /// How many series there are, for the reference.
    const fn series(&self) -> &'static str {
        match self {
            Self::Agent(_) => "1",
            Self::Map(_) => "maps",
            Self::Reason(_) => "reasons",
            Self::Service(_) => "services",
            Self::Backend(_) => "backends, at most `observation.backendSeries`",
            Self::Other { series, .. } => series,
        }
    }

    fn write(&self, view: &View, out: &mut Samples) -> fmt::Result {
        match self {
            Self::Agent(value) => out.put(&[], value(view)),
            Self::Map(value) => {
                let mut counted = view.status.maps.iter().filter_map(|map| Some((map, value(map)?)));
                counted.try_for_each(|(map, value)| out.put(&[&map.name], value))
            }
            Self::Reason(value) => view.status.reasons.iter().try_for_each(|of| out.put(&[&of.name], value(of))),
            Self::Service(value) => {
                view.status.services.iter().try_for_each(|of| out.put(&ServiceLabels::of(of).values(), value(of)))
            }
            Self::Backend(value) => view.shown().try_for_each(|service| {
                let labels = ServiceLabels::of(service);
                let [name, vip, protocol, port] = labels.values();
                service.backends.iter().try_for_each(|of| {
                    let backend = SocketAddr::new(of.address, of.port).to_string();
                    out.put(&[name, vip, protocol, port, &backend], value(of))
                })
            }),
            Self::Other { samples, .. } => samples(&view.status, out),
        }
    }
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum BaseUnit {
    Bytes,
    Seconds,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Counter,
    Gauge,
    Histogram,
    Info,
}

impl Kind {
    const fn of_the_library(self) -> MetricType {
        match self {
            Self::Counter => MetricType::Counter,
            Self::Gauge => MetricType::Gauge,
            Self::Histogram => MetricType::Histogram,
            Self::Info => MetricType::Info,
        }
    }
}

/// A status, and what of it has series of its own.
#[derive(Debug)]
struct View {
    status: Arc<Status>,
    /// By service, in the order of the status: whether its backends have series.
    shown: Vec<bool>,
}

impl View {
    /// Backends have series service by service, in the order of the configuration, as long as all of a service's fit: half a
    /// service would look like a lopsided one.
    fn new(status: Arc<Status>, backend_series: u32) -> Self {
        let mut left = backend_series as usize;
        let shown = status.services.iter().map(|service| match left.checked_sub(service.backends.len()) {
            Some(rest) => {
                left = rest;
                true
            }
            None => false,
        });
        Self { shown: shown.collect(), status }
    }

    /// Services whose backends have series.
    fn shown(&self) -> impl Iterator<Item = &ServiceStatus> {
        self.status.services.iter().zip(&self.shown).filter(|(_, shown)| **shown).map(|(service, _)| service)
    }

    /// Backends that have none.
    fn omitted(&self) -> usize {
        let omitted = self.status.services.iter().zip(&self.shown).filter(|(_, shown)| !**shown);
        omitted.map(|(service, _)| service.backends.len()).sum()
    }
}

/// Values of the labels `service`, `vip`, `protocol` and `port`.
struct ServiceLabels([String; 4]);

impl ServiceLabels {
    fn of(service: &ServiceStatus) -> Self {
        Self([
            service.name.clone().unwrap_or_default(),
            service.vip.to_string(),
            service.protocol.to_string(),
            service.port.to_string(),
        ])
    }

    fn values(&self) -> [&str; 4] {
        self.0.each_ref().map(String::as_str)
    }
}

/// Where a family's samples go.
struct Samples<'a> {
    family: &'static Family,
    encoder: MetricEncoder<'a>,
}

impl Samples<'_> {
    /// One sample with these values of the family's labels.
    fn put(&mut self, values: &[&str], value: u64) -> fmt::Result {
        let labels = self.labels(values);
        let (family, encoder) = (self.family, &mut self.encoder);
        let write = |encoder: &mut MetricEncoder| match family.kind {
            Kind::Counter => encoder.encode_counter::<NoLabelSet, _, u64>(&value, None),
            Kind::Gauge => encoder.encode_gauge(&value),
            Kind::Histogram | Kind::Info => Err(fmt::Error),
        };
        // An empty family would be written as empty braces.
        if labels.is_empty() { write(encoder) } else { write(&mut encoder.encode_family(&labels)?) }
    }

    /// The one sample of an info, of value 1.
    fn info(&mut self, values: &[&str]) -> fmt::Result {
        let labels = self.labels(values);
        self.encoder.encode_info(&labels)
    }

    /// A histogram's samples: by upper bound how many are in each bucket, and of all of them the sum.
    fn histogram(&mut self, values: &[&str], buckets: &[(f64, u64)], sum: f64) -> fmt::Result {
        let labels = self.labels(values);
        let count = buckets.iter().map(|(_, count)| count).sum();
        self.encoder.encode_family(&labels)?.encode_histogram::<NoLabelSet>(sum, count, buckets, None)
    }

    fn labels<'v>(&self, values: &[&'v str]) -> Vec<(&'static str, &'v str)> {
        let names = self.family.source.labels();
        assert_eq!(values.len(), names.len(), "labels of {}", self.family.name);
        names.iter().copied().zip(values.iter().copied()).collect()
    }
}

impl Collector for View {
    fn encode(&self, mut encoder: DescriptorEncoder) -> fmt::Result {
        for family in all() {
            let unit = family.unit.map(|unit| match unit {
                BaseUnit::Bytes => Unit::Bytes,
                BaseUnit::Seconds => Unit::Seconds,
            });
            let kind = family.kind.of_the_library();
            let encoder = encoder.encode_descriptor(family.name, family.help, unit.as_ref(), kind)?;
            family.source.write(self, &mut Samples { family, encoder })?;
        }
        Ok(())
    }
}

/// The exposition of a status, with series of their own for at most `backend_series` backends.
pub fn render(status: Arc<Status>, backend_series: u32) -> String {
    let mut registry = Registry::default();
    registry.register_collector(Box::new(View::new(status, backend_series)));
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("writing to a string cannot fail");
    text
}
