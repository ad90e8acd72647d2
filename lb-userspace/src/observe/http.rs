//! What is asked for and what is answered.

use http_body_util::Full;
use hyper::{
    HeaderMap, Method, Response, StatusCode,
    body::Bytes,
    header::{ALLOW, CACHE_CONTROL, CONTENT_TYPE, WWW_AUTHENTICATE},
    http::request::Parts,
};

use super::{
    credentials::Access,
    engine::{Engine, HEALTH_WAIT_MAX},
    metrics,
};

const TEXT: &str = "text/plain; charset=utf-8";
const JSON: &str = "application/json";

/// What there is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Page {
    Index,
    Metrics,
    Health,
    Ready,
    State,
}

impl Page {
    fn at(path: &str) -> Option<Self> {
        match path {
            "/" => Some(Self::Index),
            "/metrics" => Some(Self::Metrics),
            "/healthz" => Some(Self::Health),
            "/readyz" => Some(Self::Ready),
            "/state" => Some(Self::State),
            _ => None,
        }
    }

    /// A probe of the kubelet has no secret to show. It gets a word, and no more without a token.
    const fn is_open(self) -> bool {
        match self {
            Self::Index | Self::Health | Self::Ready => true,
            Self::Metrics | Self::State => false,
        }
    }
}

const INDEX: &str = "\
Sluice
/healthz  200 while the agent's engine answers
/readyz   200 while all that is configured is in force
/metrics  OpenMetrics; docs/metrics.md
/state    JSON, as of `sluice status -o json`
";

/// Answers one request. Nothing of its body is read.
pub(super) async fn answer(
    request: &Parts,
    access: &Access,
    engine: &Engine,
    backend_series: u32,
) -> Response<Full<Bytes>> {
    let Some(page) = Page::at(request.uri.path()) else {
        return text(StatusCode::NOT_FOUND, "there is /healthz, /readyz, /metrics and /state\n");
    };
    if !matches!(request.method, Method::GET | Method::HEAD) {
        let mut refusal = text(StatusCode::METHOD_NOT_ALLOWED, "everything here is read-only\n");
        refusal.headers_mut().insert(ALLOW, "GET, HEAD".parse().expect("a header's value"));
        return refusal;
    }
    let granted = access.is_granted(&request.headers);
    if !granted && !page.is_open() {
        return refused(access);
    }
    match page {
        Page::Index => text(StatusCode::OK, INDEX),
        Page::Health => match engine.health().await {
            Some(_) => text(StatusCode::OK, "ok\n"),
            None => silent(),
        },
        Page::Ready => match engine.health().await.map(|health| health.waiting) {
            Some(None) => text(StatusCode::OK, "ready\n"),
            Some(Some(waiting)) if granted => {
                text(StatusCode::SERVICE_UNAVAILABLE, format!("not everything is in force yet:\n{waiting}\n"))
            }
            Some(Some(_)) => text(StatusCode::SERVICE_UNAVAILABLE, "not everything is in force yet\n"),
            None => silent(),
        },
        Page::Metrics => match engine.status().await {
            Some(status) => body(StatusCode::OK, metrics::CONTENT_TYPE, metrics::render(status, backend_series)),
            None => silent(),
        },
        Page::State => match engine.status().await {
            Some(status) => body(StatusCode::OK, JSON, serde_json::to_vec(&*status).expect("a status is plain data")),
            None => silent(),
        },
    }
}

fn refused(access: &Access) -> Response<Full<Bytes>> {
    match access {
        Access::Nobody => text(StatusCode::SERVICE_UNAVAILABLE, "the agent cannot read its token; its log says why\n"),
        Access::Everybody | Access::Bearer(_) => {
            let mut refusal = text(StatusCode::UNAUTHORIZED, "show the agent's token: Authorization: Bearer TOKEN\n");
            refusal.headers_mut().insert(WWW_AUTHENTICATE, "Bearer".parse().expect("a header's value"));
            refusal
        }
    }
}

fn silent() -> Response<Full<Bytes>> {
    let text_of = format!("the engine did not answer within {} s: it is busy, or hangs\n", HEALTH_WAIT_MAX.as_secs());
    text(StatusCode::SERVICE_UNAVAILABLE, text_of)
}

fn text(status: StatusCode, text: impl Into<String>) -> Response<Full<Bytes>> {
    body(status, TEXT, text.into())
}

fn body(status: StatusCode, kind: &'static str, content: impl Into<Bytes>) -> Response<Full<Bytes>> {
    let mut headers = HeaderMap::new();
    headers.insert(CONTENT_TYPE, kind.parse().expect("a header's value"));
    headers.insert(CACHE_CONTROL, "no-store".parse().expect("a header's value"));
    let mut response = Response::new(Full::new(content.into()));
    (*response.status_mut(), *response.headers_mut()) = (status, headers);
    response
}
