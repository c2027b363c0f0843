#!/usr/bin/env bash
# Breaks production decisions, one at a time, and requires that the simulation fails each time: a simulation that lets a
# broken decision pass watches nothing. Works on a copy of the workspace under the target directory, so that dependencies
# need not be built again; the work tree stays as it is.
#
#   scripts/mutate.sh          all of them
#   scripts/mutate.sh NAME...  only these
#
# MUTATION_SEEDS: most seeds that a broken decision may survive (10000).
set -euo pipefail
# shellcheck source=scripts/lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/lib.sh"
cd "$root"

target="$(cargo metadata --format-version 1 --no-deps | grep -oE '"target_directory":"[^"]*"' | cut -d '"' -f 4)"
copy="$target/mutants/source"
log="$target/mutants/log"
seeds="${MUTATION_SEEDS:-10000}"
only=("$@")
survivors=()
count=0

# One at a time: two would write into one copy.
mkdir -p "$target/mutants"
exec 9>"$target/mutants/lock"
flock 9

# Copies what changed; what did not keeps its time, so that cargo builds only what it must.
fresh_copy() {
    mkdir -p "$copy"
    tar -cf - --exclude=./target --exclude=./.git . | tar -xf - -C "$copy"
}

simulate() {
    (cd "$copy" && CARGO_TARGET_DIR="$target" SIMULATION_SEEDS="$seeds" RUST_BACKTRACE=0 \
        cargo test --workspace --test simulation 9>&-) >"$log" 2>&1
}

# mutant NAME FILE OLD NEW: replaces the one place in FILE where OLD stands (one or several lines) by NEW, runs the
# simulation, and puts the file back.
mutant() {
    local name="$1" file="$copy/$2" old="$3" new="$4" begun="$SECONDS"
    [[ ${#only[@]} -eq 0 || " ${only[*]} " == *" $name "* ]] || return 0
    count=$((count + 1))
    local text rest
    text="$(cat "$file" && printf x)"
    text="${text%x}"
    [[ "$text" == *"$old"* ]] || die "mutant $name: $2 does not hold what it replaces"
    rest="${text#*"$old"}"
    [[ "$rest" != *"$old"* ]] || die "mutant $name: $2 holds what it replaces twice"
    printf '%s' "${text%%"$old"*}$new$rest" >"$file"
    if simulate; then
        survivors+=("$name")
        say "mutant $name SURVIVED $seeds seeds"
    elif grep -qE '^seed [0-9]+ fails' "$log"; then
        say "mutant $name: $(grep -oE '^seed [0-9]+ fails: .{0,100}' "$log" | head -n 1) ($((SECONDS - begun)) s)"
    else
        tail -n 30 "$log"
        die "mutant $name does not build, or the simulation ended otherwise"
    fi
    printf '%s' "$text" >"$file"
}

fresh_copy

# What an owner that does not answer means.
mutant silent-owner-holds actors/src/claims/record.rs \
    '(ClaimState::Running, OwnerWord::Holds) =>' \
    '(ClaimState::Running, OwnerWord::Holds | OwnerWord::Silent) =>'
# An owner is asked before it loses what it works on.
mutant owners-are-not-asked actors/src/claims/record.rs \
    '(ClaimState::Running, OwnerWord::NotAsked) => Judgement::AskOwner,' \
    '(ClaimState::Running, OwnerWord::NotAsked) => Judgement::TakeOver(Box::new(self.taken_over(claimant))),'
# A finished assignment is left alone.
mutant finished-is-taken-over actors/src/claims/record.rs \
    '(ClaimState::Finished, _) => Judgement::Finished(self.outcome.clone()),' \
    '(ClaimState::Finished, _) => Judgement::TakeOver(Box::new(self.taken_over(claimant))),'
# A claim that somebody else has is lost.
mutant lost-claim-is-overwritten actors/src/claims/record.rs \
    'Some(_) => AfterConflict::Lost,' \
    'Some(record) => AfterConflict::WriteOnTop(Box::new(record.clone())),'
# What a dead process stored is published only by who may.
mutant everything-is-inherited actors/src/claims/record.rs \
    'ClaimState::Finished => Inheritance::AnsweredBefore,' \
    'ClaimState::Finished => Inheritance::Publish,'
# What kills its workers is given up.
mutant nothing-is-quarantined actors/src/claims/record.rs \
    'record.died_alone && record.deaths >= self.max_deaths' \
    'record.died_alone && record.deaths >= self.max_deaths && self.max_deaths == 0'
# What may have killed its worker runs alone before it is given up.
mutant nobody-runs-alone actors/src/claims/record.rs \
    'record.died_alone && record.deaths >= self.max_deaths' \
    'record.deaths >= self.max_deaths'
# After a lapse the claim is asked before anything is published.
mutant lapsed-needs-no-proof actors/src/publisher/plan.rs \
    '} if unpublished || progress.to_acknowledge => Step::Prove,' \
    '} if progress.messages > 100 => Step::Prove,'
# The broker is told last.
mutant settled-before-published actors/src/publisher/plan.rs \
    '        Progress { to_keep: true, .. } => Step::Keep,' \
    '        Progress { to_settle: true, lapsed: false, .. } => Step::Settle,
        Progress { to_keep: true, .. } => Step::Keep,'
# A lease ends.
mutant leases-never-lapse actors/src/lease.rs \
    'self.lapsed |= now >= self.renewed + (ack_wait - ack_wait / MARGIN_PART);' \
    'self.lapsed |= now >= self.renewed + ack_wait * 1000;'
# Rows: what is finished is not run.
mutant finished-runs-again actors/src/intake/decision.rs \
    'StandingFact::Finished => return Row::Repeat,' \
    'StandingFact::Finished => {}'
# Rows: a copy is acknowledged only by who is certain.
mutant uncertain-copies-are-acknowledged actors/src/intake/decision.rs \
    '_ if matches!(standing, Standing::Uncertain(_)) => Self::ElsewhereSameMessage,' \
    '_ if matches!(standing, Standing::New) => Self::ElsewhereSameMessage,'
# Who was asked for before it came does not run.
mutant tombstones-are-ignored actors/src/cancellation.rs \
    '.find(&identity.tenant_id, Target::all_of(identity), now);' \
    '.find(&identity.tenant_id, Target::all_of(identity).take(0), now);'
# A request that came before the outcome was known decides it.
mutant requests-decide-nothing actors/src/cancellation.rs \
    '        entry.asked.get().cloned()
    }' \
    '        None
    }'
# What has ended stays as it ended.
mutant ends-are-not-sealed actors/src/cancellation.rs \
    '            held.sealed = true;' \
    '            held.sealed = false;'
# Calls are counted.
mutant one-call-too-many actors/src/block_worker/retry.rs \
    'if attempt.saturating_add(1) >= self.max_attempts(failure) {' \
    'if attempt >= self.max_attempts(failure) {'
# A pool has bounds.
mutant pools-have-no-bound actors/src/pool/policy.rs \
    'depth >= self.size || self.status(depth) == OverloadStatus::Critical' \
    'depth > self.size && self.status(depth) == OverloadStatus::Critical'
# A job that leaves for another takes the debt with it.
mutant debts-stay actors/src/pool/places.rs \
    '            self.owes = true;' \
    '            self.owes = false;'
# What was taken on once is not refused by a quota.
mutant quotas-refuse-what-was-taken-on actors/src/tenants/accounts.rs \
    'if !ask.taken_on_before {' \
    'if !ask.taken_on_before || policy.max_queued.is_some() {'
# A job that ends gives its share back.
mutant shares-stay actors/src/tenants/accounts.rs \
    'account.used.remove(used);
        if refund {' \
    'account.used.remove(Used::default());
        if refund {'
# What was refused by a quota stays refused, whoever takes it over.
mutant quota-refusals-are-forgotten actors/src/claims/record.rs \
    'let ack = self.ack.as_ref().filter(|_| self.refused)?;' \
    'let ack = self.ack.as_ref().filter(|_| self.refused && self.attempt == 0)?;'
# A deferral is nobody's attempt.
mutant deferrals-are-attempts actors/src/claims/record.rs \
    '    pub fn defer(&mut self) {
        self.state = ClaimState::Interrupted;' \
    '    pub fn defer(&mut self) {
        self.state = ClaimState::Running;'
# Who waits asks for no more than fits.
mutant waiting-asks-for-too-much actors/src/pool/room.rs \
    'least.saturating_sub(unplaced)' \
    'least.saturating_sub(unplaced / 2)'
# A turn ends.
mutant turns-do-not-end actors/src/pool/line.rs \
    'queue.deficit = deficit - 1;' \
    'queue.deficit = deficit;'
# Who comes has its turn after those that wait.
mutant who-comes-goes-first actors/src/pool/line.rs \
    '(self.next_turn, Arc::<str>::from(tenant))' \
    '(-self.next_turn, Arc::<str>::from(tenant))'
# Waiting makes up for priority.
mutant priorities-do-not-age actors/src/pool/line.rs \
    'since + self.0 * u32::from' \
    'since + self.0 * 50 * u32::from'
# A tenant has a limit.
mutant tenants-run-one-more actors/src/pool/running.rs \
    'max.is_some_and(|max| count.running >= max)' \
    'max.is_some_and(|max| count.running > max)'

# A question is settled once.
mutant questions-are-settled-twice actors/src/approvals/record.rs \
    'if self.standing != Standing::Pending {
            return Err(Refused::Settled);' \
    'if self.answered.is_some() {
            return Err(Refused::Settled);'
# What was settled is published by whoever finds it.
mutant settled-questions-are-left actors/src/approvals/record.rs \
    '(_, None) => Due::Answer,' \
    '(_, None) => Due::Nothing { until: u64::MAX },'
# What becomes of a question is settled where it is kept.
mutant questions-run-out-of-attempts actors/src/intake/decision.rs \
    'if facts.exhausted && !facts.asks {' \
    'if facts.exhausted {'

[[ "$count" -gt 0 ]] || die "no mutant has such a name"
[[ ${#survivors[@]} -eq 0 ]] || die "the simulation does not notice: ${survivors[*]}"
say "mutants: all $count were noticed, $SECONDS s"
