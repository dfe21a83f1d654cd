{{- /* What a schema cannot say, or only by a pattern: each says what to do. What the programs refuse when they start is refused
here: Helm would call the release deployed. */ -}}
{{- define "sluice.check" -}}
{{- include "sluice.checkNats" . -}}
{{- include "sluice.checkElection" . -}}
{{- include "sluice.checkImages" . -}}
{{- include "sluice.checkLog" . -}}
{{- $resync := include "sluice.millis" .Values.resync | int64 -}}
{{- if or (lt $resync 1000) (gt $resync 60000) -}}
{{- fail (printf "\n\nresync (%s) must be from 1s to 60s\n" .Values.resync) -}}
{{- end -}}
{{- end -}}

{{- define "sluice.checkNats" -}}
{{- range $field, $servers := dict "nats.servers" .Values.nats.servers "dataplane.natsServers" .Values.dataplane.natsServers -}}
{{- range $servers -}}
{{- if contains "@" . -}}
{{- fail (printf "\n\n%s must not hold a user or a password: arguments can be read by many. Put a credentials file into a Secret and name it in nats.credentialsSecret and dataplane.credentialsSecretName\n" $field) -}}
{{- end -}}
{{- if not (regexMatch "^(nats|tls|ws|wss)://([A-Za-z0-9_.-]+|\\[[0-9A-Fa-f:.]+\\])(:[0-9]{1,5})?$" .) -}}
{{- fail (printf "\n\n%s holds %q: must be like nats://nats.nats.svc:4222 (or tls://, ws://, wss://); an IPv6 address stands in brackets\n" $field .) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- define "sluice.checkImages" -}}
{{- $repository := "(([A-Za-z0-9]([-A-Za-z0-9.]*[A-Za-z0-9])?|\\[[0-9A-Fa-f:]+\\])(:[0-9]{1,5})?/)?[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*(/[a-z0-9]+((\\.|_|__|-+)[a-z0-9]+)*)*" -}}
{{- $tag := "[A-Za-z0-9_][-A-Za-z0-9_.]{0,127}" -}}
{{- $digest := "@[A-Za-z][-A-Za-z0-9_+.]*:[0-9A-Fa-f]{32,128}" -}}
{{- with .Values.dataplane.image -}}
{{- if not (regexMatch (printf "^%s(:%s)?(%s)?$" $repository $tag $digest) .) -}}
{{- fail (printf "\n\ndataplane.image is %q: must be an image reference like registry.example.com/team/sluice-dataplane:v2 (no scheme, no spaces, the repository in lower case). Every channel's pods would use it\n" .) -}}
{{- end -}}
{{- end -}}
{{- range $field, $image := dict "image" .Values.image "natsServer.image" .Values.natsServer.image -}}
{{- if not (regexMatch (printf "^%s$" $repository) $image.repository) -}}
{{- fail (printf "\n\n%s.repository is %q: must be like registry.example.com/team/name (no scheme, no spaces, lower case, the tag in %s.tag)\n" $field $image.repository $field) -}}
{{- end -}}
{{- if and $image.tag (not (regexMatch (printf "^%s(%s)?$" $tag $digest) $image.tag)) -}}
{{- fail (printf "\n\n%s.tag is %q: must be letters, digits, '_', '-' and '.'\n" $field $image.tag) -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* A word that is no level would be taken for a target, and nothing be logged at all. Fields of spans may hold commas. */ -}}
{{- define "sluice.checkLog" -}}
{{- range splitList "," .Values.logLevel -}}
{{- $word := trim . -}}
{{- if and $word (not (regexMatch "[][{}]" $word)) -}}
{{- if not (regexMatch "^(?i)([^=]+=)?(off|error|warn|info|debug|trace|[0-5])$|^[^=]*[_:][^=]*$" $word) -}}
{{- fail (printf "\n\nlogLevel holds %q: must be a level (off, error, warn, info, debug, trace), or directives such as info,sluice_operator=debug\n" $word) -}}
{{- end -}}
{{- end -}}
{{- end -}}
{{- end -}}

{{- /* Milliseconds of a duration such as 1m30s. */ -}}
{{- define "sluice.millis" -}}
{{- $sum := 0 -}}
{{- range regexFindAll "[0-9]+(ms|h|m|s)" . -1 -}}
{{- $number := regexFind "^[0-9]+" . | int64 -}}
{{- $unit := regexFind "[a-z]+$" . -}}
{{- $sum = add $sum (mul $number (get (dict "ms" 1 "s" 1000 "m" 60000 "h" 3600000) $unit)) -}}
{{- end -}}
{{- $sum -}}
{{- end -}}

{{- /* What the operator would refuse when it starts: Helm would call the release deployed. */ -}}
{{- define "sluice.checkElection" -}}
{{- with .Values.leaderElection -}}
{{- $lease := include "sluice.millis" .leaseDuration | int64 -}}
{{- $renew := include "sluice.millis" .renewDeadline | int64 -}}
{{- $retry := include "sluice.millis" .retryPeriod | int64 -}}
{{- if ne (mod $lease 1000) 0 -}}
{{- fail (printf "\n\nleaderElection.leaseDuration (%s) must be whole seconds, as a Lease has them\n" .leaseDuration) -}}
{{- end -}}
{{- if or (lt $lease 1000) (lt $retry 1) -}}
{{- fail (printf "\n\nleaderElection.leaseDuration (%s) must be at least 1s and leaderElection.retryPeriod (%s) more than nothing\n" .leaseDuration .retryPeriod) -}}
{{- end -}}
{{- if ge $renew $lease -}}
{{- fail (printf "\n\nleaderElection.renewDeadline (%s) must be shorter than leaderElection.leaseDuration (%s): an operator stops acting before another takes over\n" .renewDeadline .leaseDuration) -}}
{{- end -}}
{{- if ge $retry $renew -}}
{{- fail (printf "\n\nleaderElection.retryPeriod (%s) must be shorter than leaderElection.renewDeadline (%s): a renewal needs more than one attempt\n" .retryPeriod .renewDeadline) -}}
{{- end -}}
{{- end -}}
{{- end -}}
