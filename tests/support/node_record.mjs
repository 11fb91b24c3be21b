// A reporter for node --test: one line of JSON for each test that ended, {name, file, end}.

export default async function* record(events) {
    for await (const { type, data } of events) {
        if (type !== "test:pass" && type !== "test:fail") continue;
        // A suite ends like the tests in it, which are told of by themselves.
        const failure = data.details?.error?.failureType;
        if (data.details?.type === "suite" || failure === "subtestsFailed") continue;
        const end = data.skip !== undefined || data.todo !== undefined ? "skipped" : type === "test:pass" ? "passed" : "failed";
        yield `${JSON.stringify({ name: data.name, file: data.file ?? data.name, end })}\n`;
    }
}
