//! The way of a case through the fleet's claims: nothing is answered or run before the right to do so is granted.
//!
//! Neighbours: intake starts one of these futures per case and gets it back to carry the row out. Runs beside the
//! actor: claims are asked for in parallel, and a case survives a failed intake. Decides nothing itself: the judgement
//! is [`ClaimRecord::judge`], the row [`super::decision::decide`].

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use super::decision::Row;
use super::{Case, HAND_BACK_DELAY_MS, Intake, Known};
use crate::claims::fleet::{Fleet, Found, Learnt, STORE_RETRY, StoreError, Taken};
use crate::claims::record::{ClaimRecord, Claimant, StoredMessage};
use crate::claims::{Claim, Standing};
use crate::clock;
use crate::events;
use crate::job::elapsed_ms;
use crate::pool::Admitted;
use crate::sink::{Outgoing, Verdict};
use crate::tenants::Share;

impl Intake {
    /// Takes the case to the fleet, as often as what is learnt there changes its row, and carries out what remains.
    pub(super) async fn admit(
        self,
        fleet: Fleet,
        position: (Arc<str>, u64),
        mut case: Case,
        mut row: Row,
        mut admitted: Option<Admitted>,
    ) {
        let claimant = fleet.claimant(&position.0, position.1);
        let key = case.key.clone();
        loop {
            let (record, ack) = self.proposal(&case, &row, admitted.as_ref(), &claimant);
            let taken = fleet.take(&key, record, case.known.revision).await;
            let found = match taken {
                Ok(Taken::Ours(claim)) => {
                    if let Some(own) = &mut case.holdings.claim {
                        own.grant(claim);
                    }
                    case.fixed_ack = ack;
                    return self.granted(case, row, admitted);
                }
                Ok(Taken::Exists(found)) => Ok(found),
                Err(error) => Err(error),
            };
            // What is learnt may take a while: place and share are for others meanwhile.
            drop(admitted.take());
            case.holdings.share = Share::default();
            case.reservation = None;
            let learnt = match found {
                Ok(found) => self.learn(&fleet, &claimant, found, &mut case).await,
                Err(error) => Err(error),
            };
            if let Err(error) = learnt {
                self.parts
                    .log
                    .emit(events::claims_unavailable(&case.identity, &error));
                tokio::time::sleep(STORE_RETRY).await;
            }
            if case.holdings.has_lapsed() {
                // The broker gives it to somebody, perhaps to us, who then begins anew.
                return self.forget(case);
            }
            (row, admitted) = self.choose_row(&mut case);
            if !row.needs_claim() {
                return self.leave(case, &row);
            }
        }
    }

    /// The claim as it would stand, with the acknowledgement that goes with the row, unless one is fixed already or none
    /// goes with it.
    fn proposal(
        &self,
        case: &Case,
        row: &Row,
        admitted: Option<&Admitted>,
        claimant: &Claimant,
    ) -> (ClaimRecord, Option<Arc<Outgoing>>) {
        let mut record = case.known.record.clone().unwrap_or_else(|| {
            let waited_ms = elapsed_ms(case.first_start, Instant::now());
            ClaimRecord::first(claimant, clock::epoch_ms().saturating_sub(waited_ms))
        });
        record.name(&case.identity);
        if let Row::Defer { .. } = row {
            record.defer();
            return (record, None);
        }
        if record.ack.is_some() {
            return (record, None);
        }
        let load = match admitted {
            Some(Admitted::Taken(taken)) => taken.load,
            _ => None,
        };
        let ack = self.ack(case, row.rejection(), load);
        record.fix_ack(StoredMessage::from(&*ack), row);
        (record, Some(ack))
    }

    /// Takes in what the fleet knows.
    async fn learn(
        &self,
        fleet: &Fleet,
        claimant: &Claimant,
        found: Found,
        case: &mut Case,
    ) -> Result<(), StoreError> {
        let learnt = fleet.learn(&found, claimant, &case.key).await?;
        let mut known = Known {
            record: None,
            revision: found.revision,
        };
        match learnt {
            Learnt::Nothing => {}
            Learnt::HeldElsewhere { same_message } => case.standing = Standing::Elsewhere { same_message },
            Learnt::Finished(result) => case.standing = Standing::Finished(result.map(Arc::new)),
            Learnt::TakeOver(record) => {
                // What this process has given back itself comes back: nobody is taken over.
                let was_own = |found: &ClaimRecord| found.owner == claimant.owner;
                if !found.record.as_ref().is_some_and(was_own) {
                    self.parts.log.emit(events::taken_over(&case.identity, &record));
                }
                let passed_ms = clock::epoch_ms().saturating_sub(record.first_start_ms);
                let now = Instant::now();
                case.first_start = now.checked_sub(Duration::from_millis(passed_ms)).unwrap_or(now);
                case.holdings.span.set("execution.attempt", record.attempt);
                let ack = record.ack.clone();
                case.sent_ack = ack.map(|ack| Arc::new(Outgoing::from(ack)));
                known.record = Some(*record);
            }
        }
        // Not before it is known what the claim means: the next try writes on top of this revision.
        case.known = known;
        Ok(())
    }

    /// The fleet has granted it. Somebody may have asked meanwhile to cancel it.
    fn granted(&self, mut case: Case, row: Row, admitted: Option<Admitted>) {
        if row == Row::Run && case.holdings.cancel.asked().is_some() {
            return self.carry_out(case, Row::Cancelled, None);
        }
        let too_late = self.parts.status.is_draining() && matches!(row, Row::Run | Row::Park);
        if too_late {
            let verdict = Verdict::Nak {
                delay_ms: HAND_BACK_DELAY_MS,
            };
            let line = events::not_run(&case.identity, "draining");
            self.parts
                .log
                .emit(events::delivery::left(line, Row::HandBack.number()));
            case.holdings.span.set("execution.outcome", Row::HandBack.name());
            return self.settle(case.holdings, verdict);
        }
        self.carry_out(case, row, admitted);
    }

    /// Somebody else answers, or has answered.
    fn leave(&self, mut case: Case, row: &Row) {
        if let Some(claim) = case.holdings.claim.take() {
            match &case.standing {
                Standing::Finished(Some(result)) => claim.record_result(result),
                _ => Claim::forget(claim),
            }
        }
        self.settle_without_answer(row, &case.standing, &case.identity, case.holdings);
    }

    fn forget(&self, mut case: Case) {
        let line = events::not_run(&case.identity, "its lease lapsed while claims were away");
        self.parts.log.emit(events::delivery::left(line, "13"));
        case.holdings.span.set("execution.outcome", "lapsed");
        if let Some(claim) = case.holdings.claim.take() {
            claim.forget();
        }
    }
}
