//! Counts for Prometheus. Everybody who counts holds a [`Metrics`]; what is a state rather than a count is looked at when
//! somebody asks.

use std::net::SocketAddr;
use std::sync::Arc;

use anyhow::{Context, Result};
use axum::Router;
use axum::extract::State;
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use drophammer_protocol::machine::State as MachineState;
use drophammer_protocol::sight::{End, File, Sight};
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::registry::{Registry, Unit};

use crate::behind::Behind;
use crate::dhcp::others::Others;
use crate::health;
use crate::http::refuse;
use crate::observe::Told;

/// Cheap to clone: all clones count together.
#[derive(Clone, Debug, Default)]
pub(crate) struct Metrics {
    dhcp: Family<Exchange, Counter>,
    leases: Family<Of, Gauge>,
    decisions: Family<Decision, Counter>,
    transfers: Family<Transfer, Counter>,
    transferred: Family<Protocol, Counter>,
    lost: Counter,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Exchange {
    network: String,
    verdict: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Of {
    network: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Decision {
    boots: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Transfer {
    protocol: &'static str,
    file: &'static str,
    end: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Protocol {
    protocol: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct InState {
    state: &'static str,
}

impl Metrics {
    pub(crate) fn decided(&self, network: &str, verdict: &'static str) {
        self.dhcp.get_or_create(&Exchange { network: network.to_owned(), verdict }).inc();
    }

    pub(crate) fn leases(&self, network: &str, running: usize) {
        let running = i64::try_from(running).unwrap_or(i64::MAX);
        self.leases.get_or_create(&Of { network: network.to_owned() }).set(running);
    }

    /// What the timeline is told is counted.
    pub(crate) fn told(&self, told: &Told) {
        match &told.sight {
            Some(Sight::Told { own_disk }) => self.boots(if *own_disk { "own disk" } else { "agent" }),
            Some(Sight::Undecided) => self.boots("undecided"),
            Some(Sight::Fetched { file, end }) => {
                let protocol = told.phase.name();
                let (file, end) = (file_word(*file), end_word(*end));
                self.transfers.get_or_create(&Transfer { protocol, file, end }).inc();
                let bytes = told.progress.map_or(0, |progress| progress.done_bytes);
                self.transferred.get_or_create(&Protocol { protocol }).inc_by(bytes);
            }
            _ => {}
        }
    }

    fn boots(&self, boots: &'static str) {
        self.decisions.get_or_create(&Decision { boots }).inc();
    }

    /// Something that happened and isn't in the timeline.
    pub(crate) fn lost(&self) {
        self.lost.inc();
    }

    fn all(&self) -> Registry {
        let mut all = Registry::with_prefix("drophammer");
        all.register("dhcp_requests", "DHCP requests, by what was made of them", self.dhcp.clone());
        all.register("dhcp_leases", "Leases that are running", self.leases.clone());
        all.register("boot_decisions", "Machines that asked what to boot", self.decisions.clone());
        all.register("transfers", "Boot files that were fetched", self.transfers.clone());
        let transferred = self.transferred.clone();
        all.register_with_unit("transferred", "What was fetched of boot files", Unit::Bytes, transferred);
        all.register("observations_lost", "What was seen of boots and isn't in their timelines", self.lost.clone());
        all
    }
}

fn file_word(file: File) -> &'static str {
    match file {
        File::Loader => "loader",
        File::Uki => "uki",
        File::Kernel => "kernel",
        File::Initramfs => "initramfs",
    }
}

fn end_word(end: End) -> &'static str {
    match end {
        End::Complete => "complete",
        End::Unanswered => "unanswered",
        End::Stopped => "stopped",
        End::GivenUp => "given up",
    }
}

/// What is needed to answer.
#[derive(Clone, Debug)]
pub(crate) struct Exporter {
    pub(crate) metrics: Metrics,
    pub(crate) behind: Behind,
    pub(crate) others: Others,
}

/// `/metrics`, and nothing else.
pub(crate) fn router(exporter: Exporter) -> Router {
    Router::new()
        .route("/metrics", get(scrape))
        .fallback(async || refuse(StatusCode::NOT_FOUND, "there is only /metrics here"))
        .with_state(Arc::new(exporter))
}

async fn scrape(State(exporter): State<Arc<Exporter>>) -> Response {
    match tokio::task::spawn_blocking(move || exporter.text()).await.map_err(anyhow::Error::new).and_then(|text| text) {
        Ok(text) => {
            let kind = "application/openmetrics-text; version=1.0.0; charset=utf-8";
            ([(header::CONTENT_TYPE, kind)], text).into_response()
        }
        Err(error) => refuse(StatusCode::INTERNAL_SERVER_ERROR, format_args!("{error:#}")),
    }
}

impl Exporter {
    fn text(&self) -> Result<String> {
        let mut all = self.metrics.all();
        let gauge = |value: u64| {
            let gauge: Gauge = Gauge::default();
            gauge.set(i64::try_from(value).unwrap_or(i64::MAX));
            gauge
        };
        let others = self.others.problems().len() as u64;
        all.register("strange_dhcp_servers", "DHCP servers that aren't meant to be there", gauge(others));
        let resident = gauge(health::resident_bytes());
        all.register_with_unit("resident_memory", "Memory of this process", Unit::Bytes, resident);
        match &self.behind {
            Behind::Here(control) => {
                let states: Family<InState, Gauge> = Family::default();
                for state in MachineState::ALL {
                    states.get_or_create(&InState { state: state.name() }).set(0);
                }
                for (state, count) in control.states() {
                    states.get_or_create(&InState { state: state.name() }).set(i64::try_from(count)?);
                }
                all.register("machines", "Machines, by where they stand", states);
                let last = control.backup_status()?.last.map_or(0, |made| made.at_ms / 1000);
                let about = "When the state was last backed up by itself, in seconds since 1970; 0 for never";
                all.register("last_backup_timestamp", about, gauge(last));
            }
            Behind::Alone(alone) => {
                let (waiting, lost) = alone.reports();
                all.register("reports_waiting", "Reports that the control API hasn't got", gauge(waiting));
                all.register("reports_lost", "Reports that were given up", gauge(lost));
                let reached = u64::from(alone.is_known());
                all.register("control_api_up", "Whether the control API was reached last time", gauge(reached));
            }
        }
        let mut text = String::new();
        encode(&mut text, &all).context("writing metrics")?;
        Ok(text)
    }
}

/// Where it's served, if it's wanted.
pub(crate) async fn listen(address: Option<SocketAddr>) -> Result<Option<tokio::net::TcpListener>> {
    match address {
        Some(address) => crate::listen::tcp(address, "metrics (metrics)", "this host").await.map(Some),
        None => Ok(None),
    }
}
